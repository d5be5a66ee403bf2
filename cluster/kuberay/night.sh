#!/bin/sh
# Make tonight's RayJob, and wait for its end, so that the CronJob knows that it is still night.
set -eu
night=$(kubectl create --filename /night/rayjob.yaml --output name)
echo "$night"
while true; do
    # A moment without an answer is no reason to give up.
    state=$(kubectl --namespace cvm-batch get "$night" \
        --output jsonpath='{.status.jobDeploymentStatus}') || state=unknown
    case $state in
    Complete) exit 0 ;;
    Failed | ValidationFailed)
        echo "$night has failed ($state): see what kubectl describe says of it, its log, and docs/operations.md" >&2
        exit 1
        ;;
    esac
    sleep 30
done
