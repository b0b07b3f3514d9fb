#!/usr/bin/env bash
# The main job on demonstration data, through the commands that users type; `make demo` runs it.
#   DEMO     folder of everything it makes (default: demo); what is there already is continued
#   BIN      folder of the `cvaeopt` command (default: found on PATH)
#   WORKERS  worker processes on this machine (default: 2)
set -euo pipefail
demo=${DEMO:-demo}
[ -n "${BIN:-}" ] && PATH="$(cd "$BIN" && pwd):$PATH"
workers=${WORKERS:-2}

export CVAEOPT_STORAGE="sqlite:///$demo/cvaeopt.db" CVAEOPT_DATA="$demo/data" CVAEOPT_ARTIFACTS="$demo/artifacts"
if [ -z "${CVAEOPT_GPU:-}" ]; then
  CVAEOPT_GPU=$(python -c 'import torch; print("0" if torch.cuda.is_available() else "cpu")')
  export CVAEOPT_GPU
fi
mkdir -p "$demo"

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
began=$SECONDS

echo "Draws data, searches with $workers workers, retrains the best trial, predicts and reports: about 10 minutes on 2 cores."

say "1/7  demonstration data"
cvaeopt demo-data "$demo/data"
cvaeopt check-data "$demo/data"

say "2/7  search: study 'demo', $workers workers on $CVAEOPT_GPU"
pids=() stopped=
# Ctrl-C reaches the workers by itself. A second signal would stop them in the middle of an epoch.
trap 'stopped=1' INT
trap 'stopped=1; kill "${pids[@]}" 2>/dev/null || true' TERM
# Lines that move need a terminal for themselves: several workers share this one.
for _ in $(seq "$workers"); do TERM=dumb cvaeopt worker --study demo & pids+=($!); done
failed=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  while [ "$code" -gt 128 ] && kill -0 "$pid" 2>/dev/null; do code=0; wait "$pid" || code=$?; done  # a trap ended `wait`
  [ "$code" = 0 ] || failed=$code
done
if [ -n "$stopped" ]; then
  echo "Stopped. The same command continues: what is in $demo is used again."
  exit 130
fi
[ "$failed" = 0 ] || exit "$failed"
trap - INT TERM
cvaeopt status --study demo

say "3/7  export the best"
cvaeopt export-best --study demo --out "$demo/best.toml"

say "4/7  retrain it"
cvaeopt retrain "$demo/best.toml" --epochs "${EPOCHS:-6}" --out "$demo/retrain"

say "5/7  predict the test sequences"
cvaeopt predict "$demo/retrain/best.pt" --out "$demo/predictions"

say "6/7  score"
cvaeopt score "$demo/retrain/best.pt" --out "$demo/score"

say "7/7  report"
cvaeopt report --study demo --out "$demo/report"

say "done in $((SECONDS - began)) s; look at"
cat <<EOF
  $demo/predictions/pred_seq0.gif    a predicted sequence (and submission.csv)
  $demo/report/report.html           the study: curves, parameters, the best run
  $demo/retrain/                     the retrained network: best.pt, last.pt, history.jsonl, score.json
  $demo/score/psnr_per_frame.png     where it is good and where it is not
  cvaeopt dashboard --study demo --storage $CVAEOPT_STORAGE --artifacts $CVAEOPT_ARTIFACTS
EOF
