# LLKD on Ray's image with vLLM, for jobs/rayjob.yaml:
#   docker build -t REGISTRY/llkd:0.1 . && docker push REGISTRY/llkd:0.1
# What the image has stays as it is: where it is too old for LLKD, pip says so and the build fails.
FROM rayproject/ray-llm:2.60.0-py312-cu130
WORKDIR /home/ray/llkd
COPY --chown=ray pyproject.toml README.md LICENSE ./
COPY --chown=ray llkd llkd
COPY --chown=ray jobs jobs
RUN pip list --format=freeze > /tmp/image.txt \
    && pip install --no-cache-dir --constraint /tmp/image.txt .
