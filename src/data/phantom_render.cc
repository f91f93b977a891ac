#include "data/phantom_render.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "thinkvg/core/random.h"

namespace thinkvg::data::phantom {
namespace {

// Grey levels are attenuations: 0 lets all rays through (black), 1 none (white).
class Canvas {
 public:
  Canvas(std::int64_t width, std::int64_t height)
      : width_(width), height_(height), values_(static_cast<std::size_t>(width * height)) {}
  std::int64_t width() const { return width_; }
  std::int64_t height() const { return height_; }
  float& at(std::int64_t x, std::int64_t y) { return values_[static_cast<std::size_t>(y * width_ + x)]; }
  float at(std::int64_t x, std::int64_t y) const { return values_[static_cast<std::size_t>(y * width_ + x)]; }
  const float* row(std::int64_t y) const { return values_.data() + y * width_; }

 private:
  std::int64_t width_;
  std::int64_t height_;
  std::vector<float> values_;
};

inline float smooth(float low, float high, float x) {
  // The edges are constants at nearly every call, so the compiler folds the reciprocal.
  const float t = std::min(std::max((x - low) * (1.0f / (high - low)), 0.0f), 1.0f);
  return t * t * (3 - 2 * t);
}

float mix(float a, float b, float t) { return a + (b - a) * t; }

// Smooth random field on a lattice over [0, 1] x [0, 1], values about -1 to 1.
class Texture {
 public:
  Texture(RandomStream& random, int cells)
      : cells_(cells), values_(static_cast<std::size_t>((cells + 1) * (cells + 1))) {
    for (float& value : values_) value = static_cast<float>(random.uniform(-1, 1));
  }
  float at(float x, float y) const {
    const float fx = std::min(x, 0.9999f) * static_cast<float>(cells_);
    const float fy = std::min(y, 0.9999f) * static_cast<float>(cells_);
    const int ix = static_cast<int>(fx);
    const int iy = static_cast<int>(fy);
    const float tx = smooth(0, 1, fx - static_cast<float>(ix));
    const float ty = smooth(0, 1, fy - static_cast<float>(iy));
    const float* corner = values_.data() + iy * (cells_ + 1) + ix;
    return mix(mix(corner[0], corner[1], tx), mix(corner[cells_ + 1], corner[cells_ + 2], tx), ty);
  }

 private:
  int cells_;
  std::vector<float> values_;
};

struct Point {
  float x, y;
};

// Chest coordinates to pixels of a canvas that is `zoom` times the picture.
Point to_pixel(const Scene& scene, double u, double v, double zoom) {
  const double dx = u * scene.scale_u;
  const double dy = (v - 0.5) * scene.scale_v;
  return {static_cast<float>((scene.center_x + dx * scene.cosine - dy * scene.sine) * zoom),
          static_cast<float>((scene.center_y + dx * scene.sine + dy * scene.cosine) * zoom)};
}

struct Stroke {
  float half_width = 1;  // pixels
  float level = 1;       // attenuation of the line
  float strength = 1;    // 1 replaces what is below
  bool only_darker_below = true;
};

void draw_segment(Canvas& canvas, Point a, Point b, const Stroke& stroke) {
  const float reach = stroke.half_width + 1;
  const auto x1 = std::max<std::int64_t>(0, static_cast<std::int64_t>(std::floor(std::min(a.x, b.x) - reach)));
  const auto y1 = std::max<std::int64_t>(0, static_cast<std::int64_t>(std::floor(std::min(a.y, b.y) - reach)));
  const auto x2 = std::min(canvas.width() - 1, static_cast<std::int64_t>(std::ceil(std::max(a.x, b.x) + reach)));
  const auto y2 = std::min(canvas.height() - 1, static_cast<std::int64_t>(std::ceil(std::max(a.y, b.y) + reach)));
  const float dx = b.x - a.x;
  const float dy = b.y - a.y;
  const float length2 = std::max(dx * dx + dy * dy, 1e-6f);
  for (std::int64_t y = y1; y <= y2; ++y) {
    for (std::int64_t x = x1; x <= x2; ++x) {
      const float px = static_cast<float>(x) + 0.5f - a.x;
      const float py = static_cast<float>(y) + 0.5f - a.y;
      const float t = std::clamp((px * dx + py * dy) / length2, 0.0f, 1.0f);
      const float ex = px - t * dx;
      const float ey = py - t * dy;
      const float distance = std::sqrt(ex * ex + ey * ey);
      const float cover = std::clamp(stroke.half_width + 0.5f - distance, 0.0f, 1.0f) * stroke.strength;
      if (cover <= 0) continue;
      float& value = canvas.at(x, y);
      if (!stroke.only_darker_below || stroke.level > value) value = mix(value, stroke.level, cover);
    }
  }
}

// What does not change from pixel to pixel, as float.
struct Look {
  explicit Look(const Scene& scene, RandomStream& random)
      : coarse(random, 7),
        medium(random, 26),
        fine(random, 70),
        lung_level(static_cast<float>(scene.exposure.lung_level)) {
    gas_u = static_cast<float>(random.uniform(0.38, 0.55));
    gas_v = static_cast<float>(random.uniform(1.06, 1.14));
    liver = static_cast<float>(random.uniform(0.66, 0.74));
    rib_contrast = static_cast<float>(random.uniform(0.055, 0.10));
    soft_tissue = static_cast<float>(random.uniform(0.48, 0.58));
    breast = static_cast<float>(random.chance(0.4) ? random.uniform(0.03, 0.08) : 0.0);
  }
  Texture coarse, medium, fine;
  float lung_level, gas_u, gas_v, liver, rib_contrast, soft_tissue, breast;
};

float rib_profile(float q) {
  // Never below -64: a cast is cheaper than floor.
  const float shifted = q + 64;
  const float f = std::abs(shifted - static_cast<float>(static_cast<int>(shifted)) - 0.5f);
  // A band with a brighter rim.
  return smooth(0.24f, 0.17f, f) * (0.75f + 0.45f * smooth(0.09f, 0.18f, f));
}

float finding_level(const Finding& finding, float below, float depth, float texture) {
  switch (finding.kind) {
    case Kind::opacity:
      return mix(below, 0.62f + 0.08f * texture, (0.86f + 0.10f * texture) * smooth(-0.03f, 0.11f, depth));
    case Kind::nodule:
      return mix(below, 0.74f, 0.95f * smooth(-0.015f, 0.03f, depth));
    case Kind::effusion:
      return mix(below, 0.71f + 0.02f * texture, 0.97f * smooth(-0.03f, 0.05f, depth));
    case Kind::pneumothorax:
      return mix(below, 0.055f, 0.93f * smooth(-0.012f, 0.012f, depth));
    case Kind::atelectasis:
      return mix(below, 0.64f + 0.05f * texture, 0.92f * smooth(-0.022f, 0.030f, depth));
    default:
      return below;
  }
}

float tissue(const Scene& scene, const Look& look, double u, double v, float x, float y) {
  const Anatomy& anatomy = scene.anatomy;
  const auto fu = static_cast<float>(u);
  const auto fv = static_cast<float>(v);
  const float a = std::abs(fu);
  const int side = u < 0 ? 0 : 1;
  const auto trunk = static_cast<float>(anatomy.trunk);

  // Body: neck, shoulders, trunk, and the arms beside it.
  const float shoulder = smooth(-0.30f, 0.02f, fv);
  const float neck = 0.36f + 0.16f * smooth(-0.30f, -0.46f, fv);
  const float half = neck + (trunk + 0.30f * smooth(0.36f, 0.0f, fv) - 0.36f) * shoulder;
  const float inside = half - a;
  const float arm = 0.19f - std::abs(a - trunk - 0.20f - 0.22f * fv) - 0.25f * smooth(0.14f, -0.10f, fv);
  const float cover = std::max(smooth(-0.03f, 0.03f, inside), fv > -0.2f ? smooth(-0.03f, 0.03f, arm) : 0.0f);
  if (cover <= 0) return 0.02f;
  const float rim = std::clamp(inside / 0.45f, 0.0f, 1.0f);
  float level = look.soft_tissue * (0.55f + 0.45f * std::sqrt(rim)) + 0.05f * look.coarse.at(x, y);
  if (arm > 0) level += 0.16f * smooth(0.10f, 0.14f, arm) * (1 - rim);

  const float texture = look.medium.at(x, y);
  const auto below = static_cast<float>((v - scene.bottom_edge(side, a)) * scene.ratio);
  const auto heart = static_cast<float>(scene.heart_depth(u, v));
  // Well below the diaphragm there is no lung.
  const float lung = below > 0.02f ? -1.0f : static_cast<float>(scene.lung_depth(side, a, v));
  const float lung_mask = smooth(-0.015f, 0.05f, lung);
  if (lung_mask > 0) {
    const float markings = 0.022f * texture + 0.022f * look.fine.at(x, y);
    const float hilum =
        a > 0.8f ? 0.0f : std::exp(-12.0f * ((a - 0.22f) * (a - 0.22f) + 1.6f * (fv - 0.46f) * (fv - 0.46f)));
    float air =
        look.lung_level + 0.05f * (fv - 0.4f) + markings + 0.16f * hilum + look.breast * smooth(0.55f, 0.8f, fv);
    level = mix(level, air, lung_mask);
  }
  // Mediastinum with the aortic knob.
  const auto m = static_cast<float>(anatomy.mediastinum);
  // Pulmonary trunk and left atrium widen it to the left above the heart.
  const float upper = m + 0.03f * smooth(0.2f, -0.1f, fv) + (side == 1 ? 0.13f : 0.05f) * smooth(0.30f, 0.56f, fv);
  const bool near_knob = std::abs(fv - 0.26f) < 0.14f && std::abs(fu - 0.16f) < 0.16f;
  const float knob =
      near_knob ? std::exp(-260.0f * (fu - 0.16f) * (fu - 0.16f) - 330.0f * (fv - 0.26f) * (fv - 0.26f)) : 0.0f;
  const float middle = smooth(0.05f, -0.03f, a - upper) * smooth(-0.30f, -0.02f, fv);
  level = mix(level, 0.68f, std::max(0.88f * middle, 0.75f * knob * lung_mask));

  // Abdomen below the diaphragm: only under the lungs' lower edge.
  if (below > -0.05f && inside > 0) {
    const float dome = smooth(-0.03f, 0.03f, below) * smooth(0.0f, 0.12f, half - 0.04f - a);
    float organ = side == 0 ? look.liver : look.liver - 0.05f;
    if (side == 1 && std::abs(fv - look.gas_v) < 0.16f) {
      const float gas =
          std::exp(-26.0f * (a - look.gas_u) * (a - look.gas_u) - 190.0f * (fv - look.gas_v) * (fv - look.gas_v));
      organ -= 0.34f * gas;
    }
    organ += 0.03f * texture - 0.10f * smooth(1.1f, 1.5f, fv);
    level = mix(level, organ, dome);
  }
  if (heart > -0.04f)
    level = mix(level, std::max(level, 0.69f + 0.03f * texture), 0.96f * smooth(-0.03f, 0.07f, heart));

  // Findings in the lung.
  if (lung_mask > 0) {
    for (const Finding& finding : scene.findings) {
      if (finding.kind == Kind::cardiomegaly || finding.kind == Kind::device) continue;
      const bool local = finding.kind != Kind::effusion && finding.kind != Kind::pneumothorax;
      if (local && std::abs(u - finding.u) > 1.4 * std::max(finding.width, finding.height) + 0.05) continue;
      const auto depth = static_cast<float>(scene.finding_depth(finding, u, v));
      if (depth < -0.04f) continue;
      const float behind_heart = finding.kind == Kind::effusion ? 1.0f : smooth(0.02f, -0.02f, heart);
      const float mask = lung_mask * behind_heart;
      const float with = finding_level(finding, level, depth, texture);
      level = mix(level, with, mask);
    }
  }

  // Bones over everything.
  const float cage = smooth(-0.03f, 0.02f, static_cast<float>(scene.outer_edge(v)) + 0.05f - a) *
                     smooth(0.02f, 0.10f, fv - static_cast<float>(scene.top_edge(std::max(0.0f, a - 0.04f))) + 0.06f);
  if (cage > 0 && fv < 1.12f && below < 0.35f) {
    const auto spacing = static_cast<float>(anatomy.rib_spacing);
    const auto slope = static_cast<float>(anatomy.rib_slope);
    const auto phase = static_cast<float>(anatomy.rib_phase);
    const float back = rib_profile((fv - slope * a - 0.16f * a * a) / spacing + phase) * smooth(0.05f, 0.14f, a);
    const float front =
        rib_profile((fv + 0.42f * a - 0.10f * a * a) / (spacing * 1.15f) + phase) * smooth(0.34f, 0.60f, a);
    const float fade = smooth(1.12f, 0.85f, fv) * (1 - 0.55f * smooth(0.0f, 0.1f, below)) * smooth(0.35f, 0.1f, below);
    level += look.rib_contrast * cage * fade * (back + 0.55f * front) * (1 - 0.45f * level);
  }
  const float spine = smooth(0.115f, 0.08f, a);
  if (spine > 0) {
    const float disc = std::abs(fv * 11.0f - std::floor(fv * 11.0f) - 0.5f);
    level += spine * (0.055f - 0.035f * smooth(0.36f, 0.47f, disc));
  }
  const float windpipe =
      smooth(0.062f, 0.035f, std::abs(fu + 0.01f)) * smooth(-0.30f, -0.24f, fv) * smooth(0.31f, 0.27f, fv);
  level -= 0.20f * windpipe;
  for (const float sign : {-1.0f, 1.0f}) {
    const float along = sign * fu;
    if (along < 0.02f || along > 0.26f) continue;
    const float branch = std::abs(fv - 0.28f - 0.42f * along * (sign < 0 ? 1.1f : 0.8f));
    level -= 0.11f * smooth(0.028f, 0.012f, branch) * smooth(0.26f, 0.16f, along);
  }
  if (std::abs(fv) < 0.25f) {
    const float middle_v = static_cast<float>(anatomy.clavicle_v) - static_cast<float>(anatomy.clavicle_slope) * a +
                           0.025f * std::sin(a * 5.0f);
    const float clavicle =
        smooth(0.030f, 0.018f, std::abs(fv - middle_v)) * smooth(0.07f, 0.12f, a) * smooth(1.02f, 0.94f, a);
    level += 0.15f * clavicle * (1 - 0.5f * level);
  }
  const float scapula = smooth(0.13f, 0.08f, std::abs(a - 0.98f - 0.20f * (fv - 0.2f))) * smooth(0.0f, 0.08f, fv) *
                        smooth(0.50f, 0.38f, fv);
  level += 0.06f * scapula;
  return mix(0.02f, level, cover);
}

void draw_vessels(Canvas& canvas, const Scene& scene, RandomStream& random, double zoom) {
  const Finding* air = scene.find(Kind::pneumothorax);
  for (const double sign : {-1.0, 1.0}) {
    for (int i = 0; i < 11; ++i) {
      double u = sign * random.uniform(0.18, 0.28);
      double v = random.uniform(0.38, 0.54);
      double heading = (-0.95 + 1.9 * (i + random.uniform(0.1, 0.9)) / 11.0) * 1.25;
      double width = random.uniform(0.85, 1.25);
      const double step = 0.055;
      for (int k = 0; k < 10; ++k) {
        const double next_u = u + sign * std::cos(heading) * step;
        const double next_v = v + std::sin(heading) * step / scene.ratio * 1.2;
        if (scene.air_depth(next_u, next_v) < 0.02) break;
        if (air != nullptr && scene.finding_depth(*air, next_u, next_v) > -0.02) break;
        draw_segment(canvas, to_pixel(scene, u, v, zoom), to_pixel(scene, next_u, next_v, zoom),
                     {.half_width = static_cast<float>(width * zoom),
                      .level = static_cast<float>(scene.exposure.lung_level) + 0.17f,
                      .strength = 0.45f});
        u = next_u;
        v = next_v;
        heading += random.uniform(-0.22, 0.22);
        width *= 0.93;
      }
    }
  }
}

void draw_pleural_line(Canvas& canvas, const Scene& scene, const Finding& finding) {
  // The line where the depth is 0, walked from the top of the lung down.
  const int steps = 40;
  Point last{};
  bool started = false;
  for (int i = 0; i <= steps; ++i) {
    const double v = finding.height * i / steps;
    double low = scene.inner_edge(v);
    double high = scene.outer_edge(v);
    if (scene.finding_depth(finding, finding.u * low, v) > 0 || scene.finding_depth(finding, finding.u * high, v) < 0) {
      continue;
    }
    for (int k = 0; k < 12; ++k) {
      const double middle = 0.5 * (low + high);
      (scene.finding_depth(finding, finding.u * middle, v) > 0 ? high : low) = middle;
    }
    const Point point = to_pixel(scene, finding.u * low, v, 1);
    if (started) draw_segment(canvas, last, point, {.half_width = 0.8f, .level = 0.66f, .strength = 0.85f});
    last = point;
    started = true;
  }
}

void draw_device(Canvas& canvas, const Scene& scene, const Finding& finding, RandomStream& random) {
  const auto lead = static_cast<float>(0.9 + 0.1 * random.uniform());
  const double sign = finding.u < 0 ? -1 : 1;
  const bool pacemaker = finding.shape[0] == 0;
  // Wire: from the device over the collar bone's inner end, down the caval vein, into the heart.
  const std::array<std::array<double, 2>, 4> knots = {
      {{finding.u - sign * finding.width * 0.6, finding.v - 0.03},
       {sign * random.uniform(0.20, 0.28), random.uniform(0.02, 0.07)},
       {-0.13, 0.30},
       {pacemaker ? scene.anatomy.heart_u + 0.10 : -0.12,
        pacemaker ? scene.anatomy.heart_v + 0.12 : random.uniform(0.46, 0.54)}}};
  const auto knot = [&](int i) { return knots[static_cast<std::size_t>(std::clamp(i, 0, 3))]; };
  Point last = to_pixel(scene, knots[0][0], knots[0][1], 1);
  for (int segment = 0; segment < 3; ++segment) {
    for (int i = 1; i <= 12; ++i) {
      const double t = i / 12.0;
      std::array<double, 2> point{};
      for (std::size_t c = 0; c < 2; ++c) {  // Catmull-Rom
        const double p0 = knot(segment - 1)[c], p1 = knot(segment)[c], p2 = knot(segment + 1)[c],
                     p3 = knot(segment + 2)[c];
        point[c] = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t * t +
                          (3 * p1 - p0 - 3 * p2 + p3) * t * t * t);
      }
      const Point next = to_pixel(scene, point[0], point[1], 1);
      draw_segment(canvas, last, next, {.half_width = pacemaker ? 1.1f : 0.8f, .level = lead, .strength = 0.9f});
      last = next;
    }
  }
  const double reach = 1.5 * std::max(finding.width, finding.height) * scene.scale_u;
  const Point center = to_pixel(scene, finding.u, finding.v, 1);
  const auto first = [&](float c) { return std::max<std::int64_t>(0, static_cast<std::int64_t>(c - reach)); };
  const auto end = [&](float c, std::int64_t extent) {
    return std::min(extent, static_cast<std::int64_t>(c + reach) + 1);
  };
  for (std::int64_t y = first(center.y); y < end(center.y, canvas.height()); ++y) {
    for (std::int64_t x = first(center.x); x < end(center.x, canvas.width()); ++x) {
      const double dx = static_cast<double>(x) + 0.5 - scene.center_x;
      const double dy = static_cast<double>(y) + 0.5 - scene.center_y;
      const double u = (dx * scene.cosine + dy * scene.sine) / scene.scale_u;
      const double v = (-dx * scene.sine + dy * scene.cosine) / scene.scale_v + 0.5;
      const auto depth = static_cast<float>(scene.finding_depth(finding, u, v));
      const float cover = smooth(-0.006f, 0.008f, depth);
      if (cover <= 0) continue;
      float metal = 0.97f;
      const auto inner = static_cast<float>(finding.height);
      if (pacemaker) {
        metal -= 0.10f * smooth(0.02f, 0.035f, depth) * (dy < center.y - scene.center_y ? 1.0f : 0.3f);
      } else {
        metal -= 0.30f * smooth(0.45f * inner, 0.55f * inner, depth);
      }
      float& value = canvas.at(x, y);
      value = mix(value, metal, cover);
    }
  }
}

// The technician's side marker, an L on the patient's left.
void draw_marker(Canvas& canvas, const Scene& scene, RandomStream& random) {
  const auto size = static_cast<float>(std::max(scene.size.width, scene.size.height)) * 0.030f;
  const float x = static_cast<float>(scene.size.width) * static_cast<float>(random.uniform(0.90, 0.95));
  const float y = static_cast<float>(scene.size.height) * static_cast<float>(random.uniform(0.05, 0.14));
  const Stroke stroke{.half_width = size * 0.13f, .level = 0.93f, .strength = 0.9f};
  draw_segment(canvas, {x, y}, {x, y + size}, stroke);
  draw_segment(canvas, {x, y + size}, {x + 0.55f * size, y + size}, stroke);
}

// Bilinear, pixel centres aligned.
Canvas doubled(const Canvas& half, std::int64_t width, std::int64_t height) {
  Canvas full(width, height);
  for (std::int64_t y = 0; y < height; ++y) {
    const std::int64_t near_y = y / 2;
    const std::int64_t far_y = std::clamp<std::int64_t>(near_y + (y % 2 == 0 ? -1 : 1), 0, half.height() - 1);
    const float* near_row = half.row(near_y);
    const float* far_row = half.row(far_y);
    for (std::int64_t x = 0; x < width; ++x) {
      const std::int64_t near_x = x / 2;
      const std::int64_t far_x = std::clamp<std::int64_t>(near_x + (x % 2 == 0 ? -1 : 1), 0, half.width() - 1);
      full.at(x, y) =
          0.5625f * near_row[near_x] + 0.1875f * (near_row[far_x] + far_row[near_x]) + 0.0625f * far_row[far_x];
    }
  }
  return full;
}

}  // namespace

image::Picture render(const Scene& scene) {
  RandomStream random({scene.texture_key[0], scene.texture_key[1], hash_key("phantom texture")});
  const Look look(scene, random);

  // Anatomy has no edges sharper than two pixels; it is drawn at half size.
  const double zoom = 0.5;
  Canvas half((scene.size.width + 1) / 2, (scene.size.height + 1) / 2);
  const auto longest = static_cast<float>(std::max(half.width(), half.height()));
  for (std::int64_t y = 0; y < half.height(); ++y) {
    const double dy = (static_cast<double>(y) + 0.5) / zoom - scene.center_y;
    for (std::int64_t x = 0; x < half.width(); ++x) {
      const double dx = (static_cast<double>(x) + 0.5) / zoom - scene.center_x;
      const double u = (dx * scene.cosine + dy * scene.sine) / scene.scale_u;
      const double v = (-dx * scene.sine + dy * scene.cosine) / scene.scale_v + 0.5;
      half.at(x, y) = tissue(scene, look, u, v, static_cast<float>(x) / longest, static_cast<float>(y) / longest);
    }
  }
  draw_vessels(half, scene, random, zoom);
  Canvas canvas = doubled(half, scene.size.width, scene.size.height);
  if (const Finding* finding = scene.find(Kind::pneumothorax)) draw_pleural_line(canvas, scene, *finding);
  if (const Finding* finding = scene.find(Kind::device)) draw_device(canvas, scene, *finding, random);
  draw_marker(canvas, scene, random);

  // Film: window, contrast, quantum noise (more where fewer rays arrive), darker corners.
  constexpr int kLevels = 4096;
  std::vector<std::uint8_t> curve(kLevels);
  for (int i = 0; i < kLevels; ++i) {
    const double level = (i + 0.5) / kLevels;
    const double shown =
        std::clamp((level - scene.exposure.low) / (scene.exposure.high - scene.exposure.low), 0.0, 1.0);
    curve[static_cast<std::size_t>(i)] =
        static_cast<std::uint8_t>(std::lround(255.0 * std::pow(shown, scene.exposure.gamma)));
  }
  image::Picture picture;
  picture.width = scene.size.width;
  picture.height = scene.size.height;
  picture.pixels.resize(static_cast<std::size_t>(picture.width * picture.height * 3));
  const auto vignette = static_cast<float>(scene.exposure.vignette);
  std::vector<float> dim_x(static_cast<std::size_t>(picture.width));
  for (std::size_t x = 0; x < dim_x.size(); ++x) {
    const float r = 2 * static_cast<float>(x) / static_cast<float>(dim_x.size()) - 1;
    dim_x[x] = 0.5f * vignette * r * r;
  }
  // The sum of two bytes, 104.5 its standard deviation, is near enough to normal.
  const float grain = static_cast<float>(scene.exposure.noise) / 104.5f;
  std::uint8_t* out = picture.pixels.data();
  std::uint32_t bits = 0;
  for (std::int64_t y = 0; y < picture.height; ++y) {
    const float r = 2 * static_cast<float>(y) / static_cast<float>(picture.height) - 1;
    const float dim_y = 1 - 0.5f * vignette * r * r;
    const float* row = canvas.row(y);
    for (std::int64_t x = 0; x < picture.width; ++x, out += 3) {
      bits = x % 2 == 0 ? random.next_u32() : bits >> 16;
      const auto sum = static_cast<float>(static_cast<int>((bits & 255) + (bits >> 8 & 255)) - 255);
      const float level = row[x];
      const float exposed =
          (level + sum * grain * (0.45f + 0.75f * level)) * (dim_y - dim_x[static_cast<std::size_t>(x)]);
      const float index = std::min(std::max(exposed * kLevels, 0.0f), static_cast<float>(kLevels - 1));
      out[0] = out[1] = out[2] = curve[static_cast<std::size_t>(static_cast<int>(index))];
    }
  }
  return picture;
}

}  // namespace thinkvg::data::phantom
