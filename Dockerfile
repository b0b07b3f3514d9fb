# One image for dashboard and workers, with and without a GPU: the CUDA libraries come with torch, the driver from the
# NVIDIA container toolkit of the host. deploy/README.md says how it is run.
FROM python:3.12.11-slim-bookworm

# https://download.pytorch.org/whl/cpu makes an image without CUDA, 3 GB smaller.
ARG TORCH_INDEX=
ARG USER_ID=1000

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The dependencies first, for an empty package: a change of our code then does not fetch torch again.
WORKDIR /opt/cvaeopt
COPY pyproject.toml constraints.txt ./
RUN mkdir cvaeopt && touch cvaeopt/__init__.py README.md \
    && pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[postgres,s3]' \
    && pip uninstall --yes cvaeopt

COPY README.md ./
COPY cvaeopt cvaeopt
RUN pip install --no-deps . && rm -rf build cvaeopt cvaeopt.egg-info
COPY storage/*.py storage/
COPY deploy/container/supervised.sh /usr/local/bin/cvaeopt-supervised

# A new volume takes its owner from the folder on which it is mounted.
RUN useradd --uid "$USER_ID" --create-home cvaeopt \
    && install -d -o cvaeopt -g cvaeopt /srv/cvaeopt /srv/cvaeopt/storage /srv/cvaeopt/studies
USER $USER_ID
WORKDIR /srv/cvaeopt
ENTRYPOINT ["cvaeopt"]
CMD ["--help"]
