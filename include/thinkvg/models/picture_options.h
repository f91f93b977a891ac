#pragma once

#include <cstdint>
#include <string>

#include "thinkvg/image/raster.h"

namespace thinkvg::models {

// How a run reads and keeps pictures: settings of their own in every command that has a model.
struct PictureOptions {
  image::ReadOptions read;
  bool reduced_jpeg = false;
  bool keep_encoded = false;
  std::string feature_cache;
  std::int64_t feature_cache_mb = 4096;

  void visit(SettingsVisitor& v) {
    read.visit(v);
    v.setting("reduced_jpeg", reduced_jpeg,
              "Decode large JPEG files at 1/2, 1/4 or 1/8 where that covers the model's size; faster, not exact.");
    v.setting("keep_encoded", keep_encoded,
              "Keep the files' bytes in memory, decoded again each time, instead of the resized pixels.");
    v.setting("feature_cache", feature_cache,
              "Folder that keeps the features of a frozen tower from run to run; empty: memory only.");
    v.setting("feature_cache_mb", feature_cache_mb, "Memory for the features of a frozen tower.");
  }
};

}  // namespace thinkvg::models
