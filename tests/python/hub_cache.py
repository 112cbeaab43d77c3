"""Downloads files into a cache with huggingface_hub, or checks that it finds them in one.

hub_cache.py download|read ENDPOINT MODEL COMMIT CACHE FILE...
"""

import os
import sys

mode, endpoint, model, commit, cache, *files = sys.argv[1:]
# Files that the exporter looks for and the model does not have.
ABSENT = ["generation_config.json", "preprocessor_config.json", "processor_config.json",
          "special_tokens_map.json", "LICENSE", "adapter_config.json", "model.safetensors"]

from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache, _CACHED_NO_EXIST
from huggingface_hub.errors import EntryNotFoundError

if mode == "download":
    for file in files + ABSENT:
        try:
            path = hf_hub_download(model, file, cache_dir=cache, endpoint=endpoint)
            assert os.path.basename(os.path.dirname(path)) == commit, path
        except EntryNotFoundError:
            assert file in ABSENT, file
else:
    for file in files:
        path = try_to_load_from_cache(model, file, cache_dir=cache)
        assert isinstance(path, str) and os.path.isfile(path), (file, path)
        assert os.path.basename(os.path.dirname(path)) == commit, path
        assert path == hf_hub_download(model, file, cache_dir=cache, local_files_only=True)
    for file in ABSENT:
        assert try_to_load_from_cache(model, file, cache_dir=cache) is _CACHED_NO_EXIST, file
    cached = scan_cache_dir(cache)
    assert not cached.warnings, cached.warnings
    (repo,) = cached.repos
    assert repo.repo_id == model and repo.refs["main"].commit_hash == commit, repo
    revision = repo.refs["main"]
    assert sorted(file.file_name for file in revision.files) == sorted(files), revision.files
    for file in revision.files:
        assert file.size_on_disk == os.path.getsize(file.file_path), file
