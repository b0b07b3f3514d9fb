# One image for dashboard and workers, with and without a GPU: the CUDA libraries come with torch, the driver from the
# NVIDIA container toolkit of the host. deploy/README.md says how it is run.
FROM python:3.12.11-slim-bookworm@sha256:519591d6871b7bc437060736b9f7456b8731f1499a57e22e6c285135ae657bf7

# https://download.pytorch.org/whl/cpu makes an image without CUDA, 3 GB smaller.
ARG TORCH_INDEX=
ARG USER_ID=1000

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The dependencies first: a change of our code then does not fetch torch again. All have hashes but torch and the CUDA
# libraries that its wheel names: each index has other files under torch's version, so only the version is pinned.
WORKDIR /opt/cvaeopt
COPY constraints.txt deploy/container/requirements.txt ./
RUN pip install --require-hashes --only-binary :all: --requirement requirements.txt
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch

COPY pyproject.toml README.md ./
COPY studies/*.toml studies/
COPY cvaeopt cvaeopt
RUN pip install --no-deps --no-build-isolation . && pip check && rm -rf build studies cvaeopt cvaeopt.egg-info
COPY storage/*.py storage/
COPY deploy/container/supervised.sh /usr/local/bin/cvaeopt-supervised

# A new volume takes its owner from the folder on which it is mounted.
RUN useradd --uid "$USER_ID" --create-home cvaeopt \
    && install -d -o cvaeopt -g cvaeopt /srv/cvaeopt /srv/cvaeopt/storage /srv/cvaeopt/studies
USER $USER_ID
WORKDIR /srv/cvaeopt
ENTRYPOINT ["cvaeopt"]
CMD ["--help"]
