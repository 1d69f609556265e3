# A CPU image with the pinned environment; docs/machines.md says how to run it.
FROM debian:12-slim

# g++ builds llama.cpp for an export; by git, manifests tell which commit they were made with.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates g++ git make python3-venv \
    && rm -rf /var/lib/apt/lists/*
ARG UID=1000
RUN useradd --create-home --non-unique --uid $UID sharpen && install --directory --owner=sharpen /sharpen
USER sharpen
WORKDIR /sharpen

# Set up before the rest is copied, so that an edited module does not install everything again.
COPY --chown=sharpen environment.yml pyproject.toml Makefile LICENSE ./
COPY --chown=sharpen lib/__init__.py lib/
RUN UV_COMPILE_BYTECODE=1 make setup && rm -rf ~/.cache
COPY --chown=sharpen . .

ENV PATH=/sharpen/.venv/bin:$PATH
ENTRYPOINT ["sharpen"]
CMD ["doctor"]
