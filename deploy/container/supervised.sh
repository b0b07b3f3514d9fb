#!/bin/sh
# Runs a worker in a container: takes a GPU, passes signals on, and answers its supervisor in the supervisor's terms.
#
#   cvaeopt-supervised COMMAND [ARGUMENT...]
#
#   CVAEOPT_GPUS        GPUs of this machine, one for each worker, such as 0,1,1: the first that no other container
#                       holds becomes CVAEOPT_GPU. Empty: CVAEOPT_GPU is left as it is.
#   CVAEOPT_CACHE       folder shared by the containers of this machine; the GPUs in use are locked there
#   CVAEOPT_SUPERVISOR  compose (default): anything but 0 starts the container again, so only what may go better
#                       next time keeps its code: 3 (no database), 75 (device fault), 128 and above (killed)
#                       kubernetes: all codes are understood, but 0 means that the study is finished, so a worker
#                       that ended because its pod had to go answers 143
set -u

say() { printf 'cvaeopt-supervised: %s\n' "$*" >&2; }

if [ -n "${CVAEOPT_GPUS:-}" ]; then
  locks=${CVAEOPT_CACHE:?is needed to share GPUs}/gpus
  mkdir -p "$locks" || exit 1
  CVAEOPT_GPU=
  slot=0
  for gpu in $(printf %s "$CVAEOPT_GPUS" | tr , ' '); do
    exec 9>"$locks/$slot" || exit 1
    if flock --nonblock 9; then # held until this container ends, however it ends
      CVAEOPT_GPU=$gpu
      break
    fi
    slot=$((slot + 1))
  done
  if [ -z "$CVAEOPT_GPU" ]; then
    say "all of CVAEOPT_GPUS=$CVAEOPT_GPUS have a worker. Start fewer (--scale worker=$slot), or name more GPUs, or" \
      "one of them twice. Not started."
    exit 0
  fi
  export CVAEOPT_GPU
fi

asked=
pending=
child=
stop_child() {
  caught=yes
  if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null; else pending=yes; fi
}
trap 'asked=yes; stop_child' TERM INT HUP USR1

"$@" &
child=$!
[ -z "$pending" ] || stop_child # a signal that came before there was anybody to pass it to
code=127
while :; do # a signal ends `wait` early; 127 says that it had waited to the end before
  caught=
  wait "$child"
  ended=$?
  [ "$ended" -ne 127 ] || break
  code=$ended
  [ -n "$caught" ] || break
done

if [ "${CVAEOPT_SUPERVISOR:-compose}" = kubernetes ]; then
  if [ "$code" -eq 0 ] && [ -n "$asked" ]; then exit 143; fi
  exit "$code"
fi
case $code in
  0 | 3 | 75) exit "$code" ;;
  130) exit 0 ;;
  2) say "exit code 2: the input is wrong, see above. Not started again." ;;
  *)
    if [ "$code" -ge 128 ]; then
      [ -z "$asked" ] || exit 0
      exit "$code"
    fi
    say "exit code $code: an unexpected error, see above. Not started again."
    ;;
esac
exit 0
