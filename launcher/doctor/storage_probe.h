#pragma once

#include <filesystem>
#include <functional>
#include <string>

namespace tessera {

/// Tries what checkpoints need of a directory: new files, syncs, renames. Tells what it finds line
/// by line, as file systems hang:
///   storage: path <the directory, or when it is not there the nearest one above that is>
///   storage: missing 1            it is not there
///   storage: space <bytes> <bytes free> <inodes> <inodes free>
///   storage: marker 1             `marker`, a name, is in it; only when one is given
///   storage: syncs <per second>   4 KiB files written over and synced
///   storage: rate <bytes/s>       written and synced in pieces of 8 MiB
///   storage: done 1               its files could be renamed, synced and removed
///   storage: error <sentence>     instead of what would follow
/// It takes about a second where storage is not slow. Throws nothing.
void probe_storage(const std::filesystem::path& directory, const std::string& marker,
                   const std::function<void(const std::string& line)>& tell);

}  // namespace tessera
