#include "data/phantom_scene.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>

#include "thinkvg/core/random.h"

namespace thinkvg::data::phantom {
namespace {

using grounding::Box;

constexpr std::array<std::string_view, kNumPlaces> kPlaceNames = {"right lung",
                                                                  "right upper lung zone",
                                                                  "right mid lung zone",
                                                                  "right lower lung zone",
                                                                  "right hilar structures",
                                                                  "right apical zone",
                                                                  "right costophrenic angle",
                                                                  "right hemidiaphragm",
                                                                  "left lung",
                                                                  "left upper lung zone",
                                                                  "left mid lung zone",
                                                                  "left lower lung zone",
                                                                  "left hilar structures",
                                                                  "left apical zone",
                                                                  "left costophrenic angle",
                                                                  "left hemidiaphragm",
                                                                  "trachea",
                                                                  "spine",
                                                                  "right clavicle",
                                                                  "left clavicle",
                                                                  "aortic arch",
                                                                  "mediastinum",
                                                                  "upper mediastinum",
                                                                  "svc",
                                                                  "cardiac silhouette",
                                                                  "cavoatrial junction",
                                                                  "right atrium",
                                                                  "carina",
                                                                  "abdomen",
                                                                  "bilateral lung"};

constexpr std::array<std::string_view, kNumKinds> kKindNames = {
    "opacity", "nodule", "pleural effusion", "pneumothorax", "atelectasis", "cardiomegaly", "support device"};

constexpr double kUpperZoneEnd = 0.33;
constexpr double kMidZoneEnd = 0.62;
constexpr double kApexEnd = 0.17;

// A rectangle in chest coordinates and the points of it that count.
struct Patch {
  double u1, v1, u2, v2;
  std::function<bool(double u, double v)> holds;
};

Box clipped(const Box& box, const grounding::ImageSize& size) {
  const auto w = static_cast<double>(size.width);
  const auto h = static_cast<double>(size.height);
  return {std::clamp(box.x1, 0.0, w),
          std::clamp(box.y1, 0.0, h),
          std::clamp(box.x2, 0.0, w),
          std::clamp(box.y2, 0.0, h),
          {}};
}

// The pixels' bounding box of the part of the patch that counts, found on a grid.
Box bounds(const Scene& scene, const Patch& patch, int steps = 24) {
  const double inf = std::numeric_limits<double>::infinity();
  Box box{inf, inf, -inf, -inf, {}};
  if (!patch.holds) steps = 1;
  for (int i = 0; i <= steps; ++i) {
    const double v = patch.v1 + (patch.v2 - patch.v1) * i / steps;
    const double dy = (v - 0.5) * scene.scale_v;
    for (int j = 0; j <= steps; ++j) {
      const double u = patch.u1 + (patch.u2 - patch.u1) * j / steps;
      if (patch.holds && !patch.holds(u, v)) continue;
      const double dx = u * scene.scale_u;
      const double x = scene.center_x + dx * scene.cosine - dy * scene.sine;
      const double y = scene.center_y + dx * scene.sine + dy * scene.cosine;
      box.x1 = std::min(box.x1, x);
      box.y1 = std::min(box.y1, y);
      box.x2 = std::max(box.x2, x);
      box.y2 = std::max(box.y2, y);
    }
  }
  return clipped(box, scene.size);
}

Patch finding_patch(const Scene& scene, const Finding& finding) {
  const double reach_u = finding.kind == Kind::effusion || finding.kind == Kind::pneumothorax
                             ? 1.0
                             : 1.35 * std::max(finding.width, finding.height);
  Patch patch;
  switch (finding.kind) {
    case Kind::effusion:
    case Kind::pneumothorax: {
      const bool right = finding.place == Place::right_angle || finding.place == Place::right_apex;
      patch = {right ? -1.1 : 0.05, 0.0, right ? -0.05 : 1.1, 1.15, {}};
      break;
    }
    default: {
      const double reach_v = reach_u / scene.ratio;
      patch = {finding.u - reach_u, finding.v - reach_v, finding.u + reach_u, finding.v + reach_v, {}};
    }
  }
  const bool in_lung = finding.kind != Kind::cardiomegaly && finding.kind != Kind::device;
  patch.holds = [&scene, &finding, in_lung](double u, double v) {
    return scene.finding_depth(finding, u, v) > 0 && (!in_lung || scene.air_depth(u, v) > 0);
  };
  return patch;
}

int side_of(Place place) {
  switch (place) {
    case Place::right_lung:
    case Place::right_upper_zone:
    case Place::right_mid_zone:
    case Place::right_lower_zone:
    case Place::right_hilum:
    case Place::right_apex:
    case Place::right_angle:
    case Place::right_diaphragm:
      return 0;
    default:
      return 1;
  }
}

// Which third of which lung a place covers: at most one lung finding in each.
int slot_of(Place place) {
  switch (place) {
    case Place::right_upper_zone:
    case Place::right_apex:
      return 0;
    case Place::right_mid_zone:
      return 1;
    case Place::right_lower_zone:
    case Place::right_angle:
      return 2;
    case Place::left_upper_zone:
    case Place::left_apex:
      return 3;
    case Place::left_mid_zone:
      return 4;
    case Place::left_lower_zone:
    case Place::left_angle:
      return 5;
    default:
      return 6;
  }
}

double zone_middle(Place place) {
  switch (slot_of(place) % 3) {
    case 0:
      return 0.5 * (0.06 + kUpperZoneEnd);
    case 1:
      return 0.5 * (kUpperZoneEnd + kMidZoneEnd);
    default:
      return 0.77;
  }
}

// Gives the finding its shape and position; false when there is no room at its place.
bool place_finding(const Scene& scene, RandomStream& random, Finding& finding) {
  const int side = side_of(finding.place);
  const double sign = side == 0 ? -1 : 1;
  switch (finding.kind) {
    case Kind::cardiomegaly:
      finding.u = scene.anatomy.heart_u;
      finding.v = scene.anatomy.heart_v;
      finding.width = scene.anatomy.heart_width;
      finding.height = scene.anatomy.heart_height;
      return true;
    case Kind::effusion:
      finding.height = random.uniform(0.17, 0.34);  // of the lung's height
      finding.width = random.uniform(0.08, 0.16);   // rise of the meniscus
      finding.v = scene.anatomy.base[static_cast<std::size_t>(side)] - finding.height + 0.06;
      finding.u = sign;
      return true;
    case Kind::pneumothorax:
      finding.width = random.uniform(0.22, 0.34);
      finding.height = random.uniform(0.34, 0.46);  // how far down it reaches
      finding.u = sign;
      return true;
    case Kind::device:
      finding.u = sign * random.uniform(0.50, 0.70);
      finding.v = random.uniform(0.10, 0.24);
      finding.shape[0] = random.chance(0.6) ? 0 : 1;  // pacemaker or port
      finding.width = finding.shape[0] == 0 ? random.uniform(0.15, 0.19) : random.uniform(0.105, 0.13);
      finding.height = finding.shape[0] == 0 ? finding.width * random.uniform(0.72, 0.85) : finding.width;
      finding.angle = random.uniform(-0.5, 0.5);
      return true;
    default:
      break;
  }
  // Never smaller than what is still seen when the picture is shown at 112 pixels.
  const double pixel_at_112 =
      static_cast<double>(std::max(scene.size.width, scene.size.height)) / 112.0 / scene.scale_u;
  double margin = 0;
  if (finding.kind == Kind::opacity) {
    finding.width = random.uniform(0.20, 0.31);
    finding.height = finding.width * random.uniform(0.75, 1.25);
    finding.angle = random.uniform(0, std::numbers::pi);
    for (double& value : finding.shape) value = random.uniform(-1, 1);
    margin = 0.10;
  } else if (finding.kind == Kind::nodule) {
    finding.width = finding.height = std::max(random.uniform(0.085, 0.125), 2.5 * pixel_at_112);
    margin = finding.width * 1.05;
  } else {
    finding.width = random.uniform(0.24, 0.33);
    finding.height = std::max(random.uniform(0.050, 0.068), 1.4 * pixel_at_112);
    finding.angle = random.uniform(-0.45, 0.45);
    margin = 0.12;
  }
  const double middle = zone_middle(finding.place);
  for (int attempt = 0; attempt < 60; ++attempt) {
    const double v = middle + random.uniform(-0.085, 0.085);
    const double u = sign * random.uniform(scene.inner_edge(v), scene.outer_edge(v));
    if (scene.air_depth(u, v) < margin) continue;
    finding.u = u;
    finding.v = v;
    return true;
  }
  return false;
}

std::size_t draw_count(RandomStream& random) {
  const double value = random.uniform();
  return value < 0.10 ? 0 : value < 0.48 ? 1 : value < 0.82 ? 2 : 3;
}

void add_findings(Scene& scene, RandomStream& random) {
  const std::size_t count = draw_count(random);
  std::vector<Kind> kinds;
  for (std::size_t k = 0; k < kNumKinds; ++k) kinds.push_back(static_cast<Kind>(k));
  random.shuffle(kinds);
  kinds.resize(count);
  std::sort(kinds.begin(), kinds.end());
  Anatomy& anatomy = scene.anatomy;
  const bool large_heart = std::find(kinds.begin(), kinds.end(), Kind::cardiomegaly) != kinds.end();
  if (large_heart) {
    anatomy.heart_width = random.uniform(0.57, 0.68);
    anatomy.heart_height = random.uniform(0.46, 0.54);
    anatomy.heart_u = random.uniform(0.14, 0.22);
    anatomy.heart_v = random.uniform(0.68, 0.72);
  }
  std::array<bool, 7> taken{};
  for (const Kind kind : kinds) {
    std::vector<Place> places = kind_places(kind);
    random.shuffle(places);
    for (const Place place : places) {
      const auto slot = static_cast<std::size_t>(slot_of(place));
      if (taken[slot]) continue;
      // The large heart covers most of this zone.
      if (large_heart && place == Place::left_lower_zone) continue;
      Finding finding;
      finding.kind = kind;
      finding.place = place;
      if (!place_finding(scene, random, finding)) continue;
      finding.cosine = std::cos(finding.angle);
      finding.sine = std::sin(finding.angle);
      finding.box = bounds(scene, finding_patch(scene, finding), 40);
      if (!finding.box.is_valid()) continue;
      taken[slot] = slot != 6;
      scene.findings.push_back(finding);
      break;
    }
  }
}

void add_regions(Scene& scene) {
  const Anatomy& anatomy = scene.anatomy;
  const auto set = [&](Place place, const Patch& patch) {
    scene.regions[static_cast<std::size_t>(place)] = bounds(scene, patch);
  };
  for (int side = 0; side < 2; ++side) {
    const double sign = side == 0 ? -1 : 1;
    const auto place = [&](Place right) { return static_cast<Place>(static_cast<int>(right) + 8 * side); };
    const double base = anatomy.base[static_cast<std::size_t>(side)];
    const auto lung_part = [&](double v1, double v2) {
      return Patch{side == 0 ? -1.1 : 0.0, v1, side == 0 ? 0.0 : 1.1, v2,
                   [&scene, side](double u, double v) { return scene.lung_depth(side, std::abs(u), v) > 0; }};
    };
    set(place(Place::right_lung), lung_part(0, 1.15));
    set(place(Place::right_upper_zone), lung_part(0, kUpperZoneEnd));
    set(place(Place::right_mid_zone), lung_part(kUpperZoneEnd, kMidZoneEnd));
    set(place(Place::right_lower_zone), lung_part(kMidZoneEnd, 1.15));
    set(place(Place::right_apex), lung_part(0, kApexEnd));
    const double outer = scene.outer_edge(base);
    const double corner = scene.bottom_edge(side, outer);
    set(place(Place::right_angle), {std::min(sign * (outer - 0.30), sign * (outer + 0.02)),
                                    corner - 0.20,
                                    std::max(sign * (outer - 0.30), sign * (outer + 0.02)),
                                    corner + 0.01,
                                    {}});
    set(place(Place::right_diaphragm),
        {std::min(sign * 0.16, sign * outer), base - 0.03, std::max(sign * 0.16, sign * outer), corner, {}});
    set(place(Place::right_hilum),
        {std::min(sign * 0.12, sign * 0.42), 0.33, std::max(sign * 0.12, sign * 0.42), 0.56, {}});
    const double tip = anatomy.clavicle_v - 0.95 * anatomy.clavicle_slope;
    set(side == 0 ? Place::right_clavicle : Place::left_clavicle, {std::min(sign * 0.10, sign * 0.95),
                                                                   std::min(tip, anatomy.clavicle_v) - 0.03,
                                                                   std::max(sign * 0.10, sign * 0.95),
                                                                   std::max(tip, anatomy.clavicle_v) + 0.03,
                                                                   {}});
  }
  const double m = anatomy.mediastinum;
  set(Place::trachea, {-0.07, -0.26, 0.07, 0.30, {}});
  set(Place::carina, {-0.12, 0.25, 0.12, 0.35, {}});
  set(Place::spine, {-0.12, -0.25, 0.12, 1.15, {}});
  set(Place::aortic_arch, {0.06, 0.19, 0.27, 0.33, {}});
  set(Place::upper_mediastinum, {-m - 0.06, -0.02, m + 0.08, 0.33, {}});
  set(Place::mediastinum, {-m - 0.10, -0.02, m + 0.16, 0.95, {}});
  set(Place::svc, {-m - 0.06, 0.12, -0.05, 0.46, {}});
  set(Place::cavoatrial_junction, {-m - 0.10, 0.46, -0.04, 0.58, {}});
  set(Place::abdomen, {-1.0, std::min(anatomy.base[0], anatomy.base[1]) - 0.02, 1.0, 1.35, {}});
  const double reach_u = 1.2 * std::max(anatomy.heart_width, anatomy.heart_height);
  const double reach_v = reach_u / scene.ratio;
  Patch heart{anatomy.heart_u - reach_u, anatomy.heart_v - reach_v, anatomy.heart_u + reach_u,
              anatomy.heart_v + reach_v, [&scene](double u, double v) { return scene.heart_depth(u, v) > 0; }};
  set(Place::heart, heart);
  heart.u2 = anatomy.heart_u - 0.35 * anatomy.heart_width;
  set(Place::right_atrium, heart);
  const Box& right = scene.regions[static_cast<std::size_t>(Place::right_lung)];
  const Box& left = scene.regions[static_cast<std::size_t>(Place::left_lung)];
  scene.regions[static_cast<std::size_t>(Place::both_lungs)] = {std::min(right.x1, left.x1),
                                                                std::min(right.y1, left.y1),
                                                                std::max(right.x2, left.x2),
                                                                std::max(right.y2, left.y2),
                                                                {}};
}

Anatomy draw_anatomy(RandomStream& random) {
  Anatomy anatomy;
  anatomy.outer_apex = random.uniform(0.47, 0.56);
  anatomy.outer_base = random.uniform(0.88, 0.97);
  anatomy.inner = random.uniform(0.12, 0.17);
  anatomy.base = {random.uniform(0.86, 0.92), random.uniform(0.90, 0.97)};
  anatomy.dome = random.uniform(0.09, 0.15);
  anatomy.trunk = random.uniform(1.06, 1.26);
  anatomy.heart_u = random.uniform(0.12, 0.20);
  anatomy.heart_v = random.uniform(0.70, 0.74);
  anatomy.heart_width = random.uniform(0.33, 0.42);
  anatomy.heart_height = random.uniform(0.38, 0.46);
  const double tilt = random.uniform(0.30, 0.60);
  anatomy.heart_cosine = std::cos(tilt);
  anatomy.heart_sine = std::sin(tilt);
  anatomy.rib_spacing = random.uniform(0.105, 0.125);
  anatomy.rib_slope = random.uniform(0.05, 0.16);
  anatomy.rib_phase = random.uniform();
  anatomy.clavicle_v = random.uniform(0.07, 0.13);
  anatomy.clavicle_slope = random.uniform(0.02, 0.16);
  anatomy.mediastinum = random.uniform(0.13, 0.18);
  return anatomy;
}

}  // namespace

std::string_view place_name(Place place) { return kPlaceNames[static_cast<std::size_t>(place)]; }
std::string_view kind_name(Kind kind) { return kKindNames[static_cast<std::size_t>(kind)]; }

const std::vector<Place>& kind_places(Kind kind) {
  static const std::vector<Place> kZones = {Place::right_upper_zone, Place::right_mid_zone, Place::right_lower_zone,
                                            Place::left_upper_zone,  Place::left_mid_zone,  Place::left_lower_zone};
  static const std::vector<Place> kLowZones = {Place::right_mid_zone, Place::right_lower_zone, Place::left_mid_zone,
                                               Place::left_lower_zone};
  static const std::vector<Place> kAngles = {Place::right_angle, Place::left_angle};
  static const std::vector<Place> kApices = {Place::right_apex, Place::left_apex};
  static const std::vector<Place> kUpperZones = {Place::right_upper_zone, Place::left_upper_zone};
  static const std::vector<Place> kHeart = {Place::heart};
  switch (kind) {
    case Kind::opacity:
    case Kind::nodule:
      return kZones;
    case Kind::effusion:
      return kAngles;
    case Kind::pneumothorax:
      return kApices;
    case Kind::atelectasis:
      return kLowZones;
    case Kind::device:
      return kUpperZones;
    case Kind::cardiomegaly:
      break;
  }
  return kHeart;
}

double Scene::finding_depth(const Finding& finding, double u, double v) const {
  const double du = u - finding.u;
  const double dv = (v - finding.v) * ratio;
  switch (finding.kind) {
    case Kind::nodule:
      return finding.width - std::sqrt(du * du + dv * dv);
    case Kind::opacity: {
      const double c = finding.cosine;
      const double s = finding.sine;
      const double p = (du * c + dv * s) / finding.width;
      const double q = (-du * s + dv * c) / finding.height;
      const double radius = std::sqrt(p * p + q * q);
      // Harmonics 2 to 4 of the outline, by the powers of the unit vector (c1, s1).
      const double c1 = radius > 0 ? p / radius : 1;
      const double s1 = radius > 0 ? q / radius : 0;
      double ck = c1, sk = s1, edge = 1;
      for (std::size_t i = 0; i < finding.shape.size(); i += 2) {
        const double next = ck * c1 - sk * s1;
        sk = sk * c1 + ck * s1;
        ck = next;
        edge += 0.10 * (finding.shape[i] * ck + finding.shape[i + 1] * sk);
      }
      return (edge - radius) * finding.width;
    }
    case Kind::atelectasis: {
      const double c = finding.cosine;
      const double s = finding.sine;
      const double p = std::max(0.0, std::abs(du * c + dv * s) - (finding.width - finding.height));
      return finding.height - std::hypot(p, -du * s + dv * c);
    }
    case Kind::effusion: {
      const double a = finding.u * u;
      const double rise = finding.width * square(std::max(0.0, (a - 0.40) / 0.50));
      return a > 0 ? (v - (finding.v - rise)) * ratio : -1;
    }
    case Kind::pneumothorax: {
      const double a = finding.u * u;
      const double rim = std::min(outer_edge(v) - a, (v - top_edge(a)) * ratio);
      const double width = finding.width * std::sqrt(std::max(0.0, 1 - v / finding.height));
      return a > 0 ? width - rim : -1;
    }
    case Kind::cardiomegaly:
      return heart_depth(u, v);
    case Kind::device: {
      const double c = finding.cosine;
      const double s = finding.sine;
      const double p = std::abs(du * c + dv * s);
      const double q = std::abs(-du * s + dv * c);
      if (finding.shape[0] != 0) return finding.width - std::hypot(p, q);
      const double radius = 0.4 * finding.height;
      return radius - std::hypot(std::max(0.0, p - finding.width + radius), std::max(0.0, q - finding.height + radius));
    }
  }
  return -1;
}

const Finding* Scene::find(Kind kind) const {
  for (const Finding& finding : findings) {
    if (finding.kind == kind) return &finding;
  }
  return nullptr;
}

const Finding* Scene::find(Kind kind, Place place) const {
  const Finding* finding = find(kind);
  return finding != nullptr && finding->place == place ? finding : nullptr;
}

Scene make_scene(const SceneKey& key, std::int64_t longest_side) {
  Scene scene;
  RandomStream body({key.seed, hash_key("phantom body"), key.split, key.patient});
  RandomStream random({key.seed, hash_key("phantom study"), key.split, key.patient, key.study});
  scene.texture_key = {random.next_u64(), random.next_u64()};

  // MIMIC-CXR's two usual sizes.
  const std::int64_t shorter = std::llround(static_cast<double>(longest_side) * 2544.0 / 3056.0);
  const bool portrait = random.chance(0.5);
  scene.size = {portrait ? shorter : longest_side, portrait ? longest_side : shorter};
  const auto width = static_cast<double>(scene.size.width);
  const auto height = static_cast<double>(scene.size.height);

  scene.anatomy = draw_anatomy(body);
  const double shape = body.uniform(1.48, 1.78);  // height of the lungs over half the thorax' width
  const double build = body.uniform(0.80, 1.0);
  scene.scale_u = std::min(0.455 * width, 0.455 * height) * build * random.uniform(0.90, 1.0);
  scene.scale_v = scene.scale_u * shape * random.uniform(0.93, 1.0);
  scene.ratio = scene.scale_v / scene.scale_u;
  const double room_x = std::max(0.0, width / 2 - scene.scale_u * 1.02);
  const double room_y = std::max(0.0, height / 2 - scene.scale_v * 0.56);
  scene.center_x = width / 2 + random.uniform(-1, 1) * std::min(room_x, 0.13 * width);
  scene.center_y = height / 2 + random.uniform(-1, 1) * std::min(room_y, 0.10 * height);
  const double angle = random.uniform(-0.12, 0.12);
  scene.cosine = std::cos(angle);
  scene.sine = std::sin(angle);

  scene.exposure.low = random.uniform(0.02, 0.08);
  scene.exposure.high = random.uniform(0.84, 1.02);
  scene.exposure.gamma = random.uniform(0.80, 1.20);
  scene.exposure.noise = random.uniform(0.008, 0.026);
  scene.exposure.lung_level = random.uniform(0.24, 0.31);
  scene.exposure.vignette = random.uniform(0.0, 0.10);

  add_findings(scene, random);
  add_regions(scene);
  return scene;
}

}  // namespace thinkvg::data::phantom
