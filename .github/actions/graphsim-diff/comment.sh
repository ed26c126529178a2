#!/usr/bin/env bash
# Write comment.md to the pull request $NUMBER; the comment of an earlier push is replaced.
set -euo pipefail
file=$RUNNER_TEMP/comment.md
export mark
mark=$(head -n 1 "$file")
comments=repos/$GITHUB_REPOSITORY/issues/$NUMBER/comments
earlier=$(gh api "$comments" --paginate --jq '.[] | select(.body | startswith(env.mark)) | .id' | head -n 1)
if [ -n "$earlier" ]; then
  gh api --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$earlier" --field "body=@$file" --silent
else
  gh api --method POST "$comments" --field "body=@$file" --silent
fi || echo "::warning::no comment was written: pull requests of forks may not; the summary of this job has the answer"
