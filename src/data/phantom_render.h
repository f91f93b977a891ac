#pragma once

#include "data/phantom_scene.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::data::phantom {

// The scene as a grey radiograph. Depends on the scene alone. Thread-safe.
image::Picture render(const Scene& scene);

}  // namespace thinkvg::data::phantom
