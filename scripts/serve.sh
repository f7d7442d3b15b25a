#!/bin/sh
# Serves every model under saved_models/ with TF Serving, over gRPC and REST.
#
#   scripts/serve.sh [FOLDER] [--port 8500] [--rest-port 8501] [--batching] [-- FLAGS OF TF SERVING]
#
# Uses tensorflow_model_server if it is on the PATH, or else its Docker image. $TF_SERVING_IMAGE
# names a different image, such as one that ends in -gpu; $DOCKER_FLAGS are flags for docker run,
# such as "--gpus all". New exports and changes of models.config are loaded without a restart.
set -eu

# The version of TensorFlow that exported the models: an older TF Serving may lack an op of the graph.
version=2.21.0

fail() {
    echo "error: $*" >&2
    exit 2
}

folder='' port=8500 rest_port=8501 batching=''
while [ $# -gt 0 ]; do
    case $1 in
        --port | --rest-port)
            [ $# -ge 2 ] || fail "$1 needs a number"
            case $2 in '' | *[!0-9]*) fail "$1 needs a number, not '$2'" ;; esac
            if [ "$1" = --port ]; then port=$2; else rest_port=$2; fi
            shift
            ;;
        --batching) batching=yes ;;
        -h | --help)
            sed -n '2,8s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        --)
            shift
            break
            ;;
        -*) fail "unknown flag $1 (see --help); flags of TF Serving go after --" ;;
        *)
            [ -z "$folder" ] || fail "give only one folder of models, not also '$1'"
            folder=$1
            ;;
    esac
    shift
done
: "${folder:=saved_models}"
[ -d "$folder" ] || fail "no such folder: $folder"
folder=$(cd -P "$folder" && pwd -P)
config=$folder/models.config
[ -f "$config" ] || fail "$folder has no models.config: export a model first (train_classifier.py)"

# TF Serving requires absolute paths. After the folder was moved or copied, models.config has the
# old paths. They are updated for each model whose folder, of the same name, is in this folder; the
# paths of models in other folders are left unchanged.
moved() {
    name=''
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            *base_path:*\"*\")
                path=${line#*\"}
                path=${path%\"}
                here=$folder/$name
                if [ -n "$name" ] && [ "${path##*/}" = "$name" ] && [ "$path" != "$here" ] &&
                    [ -d "$here" ]; then
                    line="    base_path: \"$here\""
                fi
                ;;
            *name:*\"*\")
                name=${line#*\"}
                name=${name%\"}
                ;;
        esac
        printf '%s\n' "$line"
    done < "$config"
}
if ! moved | cmp -s - "$config"; then
    echo "models.config had the paths of another folder; it now has those of $folder" >&2
    if ! { moved > "$config.$$" && mv "$config.$$" "$config"; }; then
        rm -f "$config.$$"
        fail "cannot write $config"
    fi
fi

# A version label may point to a version that is still loading when the server starts. The REST
# server's own limit of 30 s is too short for a batch of heatmaps.
set -- \
    --model_config_file="$config" \
    --model_config_file_poll_wait_seconds=10 \
    --allow_version_labels_for_unavailable_models=true \
    --rest_api_timeout_in_ms=600000 \
    "$@"
if [ -n "$batching" ]; then
    [ -f "$folder/batching.config" ] ||
        fail "$folder has no batching.config: the next export writes it"
    set -- --enable_batching=true --batching_parameters_file="$folder/batching.config" "$@"
fi

if command -v tensorflow_model_server > /dev/null; then
    exec tensorflow_model_server --port="$port" --rest_api_port="$rest_port" "$@"
fi

if command -v docker > /dev/null; then
    docker info > /dev/null 2>&1 || fail "docker is installed but does not respond: start it, or" \
        "install tensorflow_model_server (https://www.tensorflow.org/tfx/serving/setup)"
    image=${TF_SERVING_IMAGE:-tensorflow/serving:$version}
    if ! docker image inspect "$image" > /dev/null 2>&1 && ! docker pull "$image" >&2; then
        [ -z "${TF_SERVING_IMAGE:-}" ] || fail "cannot pull the image $image"
        image=tensorflow/serving:latest
        echo "cannot pull the image for TensorFlow $version: using $image" >&2
        docker image inspect "$image" > /dev/null 2>&1 || docker pull "$image" >&2 ||
            fail "cannot pull the image $image: pull it with a network connection, or choose another" \
                "with TF_SERVING_IMAGE"
    fi
    # The folder has the same path inside as outside, so that models.config is valid in both. The
    # image's own entry point is a shell that would not pass on Ctrl-C.
    # shellcheck disable=SC2086  # DOCKER_FLAGS are several words
    exec docker run --rm --init ${DOCKER_FLAGS:-} \
        -p "$port:8500" -p "$rest_port:8501" \
        --mount "type=bind,source=$folder,target=$folder,readonly" \
        --entrypoint tensorflow_model_server "$image" \
        --port=8500 --rest_api_port=8501 "$@"
fi

fail "neither tensorflow_model_server nor docker is on the PATH. Install TF Serving" \
    "(https://www.tensorflow.org/tfx/serving/setup: apt-get install tensorflow-model-server)," \
    "or Docker (https://docs.docker.com/get-docker)"
