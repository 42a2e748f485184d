# docker build --target cpu -t plait .      docker run --read-only --tmpfs /tmp -p 8000:8000 plait
# docker build --target cuda -t plait .     ... --gpus all plait serve --device cuda
#
# The root file system may be read-only: only /tmp is written. Models of your own are mounted and
# named on the command line. What follows the image's name replaces CMD alone: what a container
# needs is in its environment, and the health check asks where the server really listens
# (docs/deployment.md).

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

FROM base AS cpu
COPY --from=build-cpu /opt/plait /opt/plait
