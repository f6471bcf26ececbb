# The planning demo and the page of the shipped models, on the processor and without a GPU:
#   docker build -t diffusion-forcing .
#   docker run --rm diffusion-forcing
#   docker run --rm -p 127.0.0.1:8000:8000 diffusion-forcing make play OVERRIDES="--host 0.0.0.0 --no-browser"
FROM python:3.11-slim

# make, and what MuJoCo draws the robot's cameras with
RUN apt-get update \
 && apt-get install -y --no-install-recommends make libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --home-dir /app user

USER user
WORKDIR /app
COPY --chown=user . .
RUN make .venv/.has-planning .venv/.has-play PIP_WORDS="--no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu"

EXPOSE 8000
CMD ["make", "demo"]
