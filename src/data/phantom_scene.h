#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/grounding/geometry.h"

// What a phantom picture shows: anatomy, findings, and where they are. No pixels here.
//
// Chest coordinates: u runs from -1 (image left, patient right) to 1 over the width of the thorax, v from 0 (lung
// apex) to about 1 (lung base). A rotation and two scales take them to pixels.
namespace thinkvg::data::phantom {

enum class Place : std::uint8_t {
  right_lung,
  right_upper_zone,
  right_mid_zone,
  right_lower_zone,
  right_hilum,
  right_apex,
  right_angle,
  right_diaphragm,
  left_lung,
  left_upper_zone,
  left_mid_zone,
  left_lower_zone,
  left_hilum,
  left_apex,
  left_angle,
  left_diaphragm,
  trachea,
  spine,
  right_clavicle,
  left_clavicle,
  aortic_arch,
  mediastinum,
  upper_mediastinum,
  svc,
  heart,
  cavoatrial_junction,
  right_atrium,
  carina,
  abdomen,
  both_lungs,
};
inline constexpr std::size_t kNumPlaces = 30;
std::string_view place_name(Place place);

enum class Kind : std::uint8_t { opacity, nodule, effusion, pneumothorax, atelectasis, cardiomegaly, device };
inline constexpr std::size_t kNumKinds = 7;
std::string_view kind_name(Kind kind);
// The places a finding of this kind can have.
const std::vector<Place>& kind_places(Kind kind);

struct Finding {
  Kind kind = Kind::opacity;
  Place place = Place::right_lung;
  // Centre in chest coordinates; extents and angle in units of half the thorax' width. Their meaning depends on the
  // kind.
  double u = 0, v = 0;
  double width = 0, height = 0;
  double angle = 0, cosine = 1, sine = 0;
  std::array<double, 6> shape{};  // outline of an opacity, variant of a device
  grounding::Box box;             // original pixels
};

struct Anatomy {
  double heart_u = 0, heart_v = 0, heart_width = 0, heart_height = 0;
  double heart_cosine = 1, heart_sine = 0;                              // of its tilt
  double outer_apex = 0, outer_base = 0;                                // lung width at the top and at the bottom
  double inner = 0;                                                     // mediastinal border of the lungs
  std::array<double, 2> base{};                                         // top of the diaphragm's dome, right and left
  double dome = 0;                                                      // how much the diaphragm falls to the side
  double trunk = 0;                                                     // half width of the body
  double rib_spacing = 0, rib_slope = 0, rib_phase = 0, rib_level = 0;  // ribs
  double clavicle_v = 0, clavicle_slope = 0;
  double mediastinum = 0;
};

struct Exposure {
  double low = 0, high = 1, gamma = 1, noise = 0, lung_level = 0, vignette = 0;
};

struct Scene {
  grounding::ImageSize size;
  double center_x = 0, center_y = 0;  // pixels of the point u = 0, v = 0.5
  double scale_u = 0, scale_v = 0;    // pixels of one unit
  double cosine = 1, sine = 0;
  Anatomy anatomy;
  Exposure exposure;
  std::vector<Finding> findings;                     // at most one of a kind
  std::array<grounding::Box, kNumPlaces> regions{};  // original pixels
  std::array<std::uint64_t, 2> texture_key{};

  double ratio = 1;  // scale_v / scale_u
  // Depth inside the lung of one side (0 right, 1 left), negative outside, in half thorax widths. `a` = distance from
  // the midline.
  double lung_depth(int side, double a, double v) const;
  double heart_depth(double u, double v) const;
  // Lung that the heart does not hide.
  double air_depth(double u, double v) const;
  double outer_edge(double v) const;
  double inner_edge(double v) const;
  double top_edge(double a) const;
  double bottom_edge(int side, double a) const;
  // How far inside a finding's outline the point is, in half thorax widths; negative outside.
  double finding_depth(const Finding& finding, double u, double v) const;
  const Finding* find(Kind kind) const;
  const Finding* find(Kind kind, Place place) const;
};

struct SceneKey {
  std::uint64_t seed = 0;
  std::uint64_t split = 0;
  std::uint64_t patient = 0;  // within the split
  std::uint64_t study = 0;
};
// The same key gives the same scene; the studies of a patient share the body's shape.
Scene make_scene(const SceneKey& key, std::int64_t longest_side);

// Drawing asks these for every pixel.
inline double square(double x) { return x * x; }

inline double Scene::outer_edge(double v) const {
  const double t = 1 - std::clamp(v, 0.0, 1.0);
  return anatomy.outer_base - (anatomy.outer_base - anatomy.outer_apex) * t * t * std::sqrt(t);
}

inline double Scene::inner_edge(double v) const {
  const double t = 1 - std::clamp(v, 0.0, 1.0);
  return anatomy.inner + 0.06 * t * t;
}

inline double Scene::top_edge(double a) const { return 1.25 * square(a - 0.36); }

inline double Scene::bottom_edge(int side, double a) const {
  return anatomy.base[static_cast<std::size_t>(side)] + anatomy.dome * square((a - 0.42) / 0.5);
}

inline double Scene::lung_depth(int side, double a, double v) const {
  const double across = std::min(outer_edge(v) - a, a - inner_edge(v));
  const double along = std::min(v - top_edge(a), bottom_edge(side, a) - v) * ratio;
  return std::min(across, along);
}

inline double Scene::heart_depth(double u, double v) const {
  const double du = u - anatomy.heart_u;
  const double dv = (v - anatomy.heart_v) * ratio;
  const double p = (du * anatomy.heart_cosine + dv * anatomy.heart_sine) / anatomy.heart_width;
  const double q = (-du * anatomy.heart_sine + dv * anatomy.heart_cosine) / anatomy.heart_height;
  // An egg: narrower towards the great vessels.
  const double narrow = 1 - 0.28 * std::clamp(-q, -0.3, 1.0);
  return (1 - std::sqrt(square(p / narrow) + q * q)) * std::min(anatomy.heart_width, anatomy.heart_height);
}

inline double Scene::air_depth(double u, double v) const {
  return std::min(lung_depth(u < 0 ? 0 : 1, std::abs(u), v), -heart_depth(u, v));
}

}  // namespace thinkvg::data::phantom
