#!/usr/bin/env bash
# Run `graphsim diff $A $B $OPTIONS`; leave its exit code as the output `code`, and what it says as a comment and a summary.
set -euo pipefail
code=0
read -r -a options <<<"${OPTIONS:-}"
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" COLUMNS=100 NO_COLOR=1 \
  graphsim diff "$A" "$B" "${options[@]}" >"$RUNNER_TEMP/said" 2>&1 || code=$?
case $code in
  0) verdict="within what is allowed" ;;
  1) verdict="**it grew by more than is allowed**" ;;
  *) verdict="**the question could not be answered**" ;;
esac
{
  echo "<!-- graphsim diff: $B -->" # by which the comment is found again
  echo "Memory of a training step of \`$B\`: $verdict"
  echo
  echo '```text'
  head -c 60000 "$RUNNER_TEMP/said" # a comment holds 65,536 characters
  echo '```'
} >"$RUNNER_TEMP/comment.md"
cat "$RUNNER_TEMP/comment.md" >>"$GITHUB_STEP_SUMMARY"
echo "code=$code" >>"$GITHUB_OUTPUT"
