# The image of masters, migration and HTTP side: `docker build -t wqcore:0.1.0 .`
#
# Two stages: the first has pip and what it needs, the last has Python, the packages, and nothing that installs more. A program of
# your own adds its modules to /app in an image that begins with this one.
ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# without pip in it: the packages are put there by the pip of this stage
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY wqcore wqcore
COPY handlers handlers
# compiled here, because the root of a container is read-only and each start would compile again
RUN python -m pip --python /opt/venv/bin/python install --compile -c constraints.txt '.[handlers]'

FROM ${PYTHON}
# pip and its kin come with the base; nothing in here installs anything
RUN python -m pip uninstall --yes --root-user-action=ignore pip setuptools wheel \
    && groupadd --gid 10001 wqcore \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin wqcore
COPY --from=build /opt/venv /opt/venv
# PYTHONDONTWRITEBYTECODE: there is nowhere to write it. PYTHONUNBUFFERED: a line is in the log also when its process is killed.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# root's, so that nobody can put a module there that a master would run
WORKDIR /app
# a number, because `runAsNonRoot` cannot tell who a name is
USER 10001:10001
STOPSIGNAL SIGTERM
# The exec form: no shell stands between the signals and the master, which is process 1 and reaps what is left to it.
# No HEALTHCHECK: Kubernetes ignores it and has its own probes (deploy/); elsewhere, ask /livez at the port of [watch].
ENTRYPOINT ["python", "-m", "wqcore"]
CMD ["--config", "/etc/wqcore/wqcore.toml"]
