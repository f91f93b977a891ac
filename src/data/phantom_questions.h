#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "data/phantom_scene.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/sample.h"

namespace thinkvg::data::phantom {

struct Question {
  QuestionType type = QuestionType::open;
  std::string content_type;          // GEMeX's "finding", "location", ..
  std::string pattern;               // the question with its kind and place left open
  std::string text;                  // without choices
  std::vector<std::string> choices;  // "A: ..", ..; empty for open and closed
  std::string answer;                // "yes", "B", "A, C", "right lower lung zone"
  std::string content;               // what the answer stands for; for a multi choice its letters
  std::string think;
  std::vector<grounding::Region> regions;  // 336 letterbox frame, on the grid

  // As the release writes it, choices behind the question.
  std::string full_text() const;
};

// The box in the 336 letterbox frame with corners on multiples of `grid`, inside the picture, at least one cell large.
grounding::Box snapped(const grounding::Box& original, const grounding::ImageSize& size, std::int64_t grid);

// Asks about one picture after the other and keeps the answers of each question text balanced: of the questions that a
// picture allows it takes the one whose answer its text has had least. So a model that reads the text only has nothing
// to hold on to. Not thread-safe; the result depends on the order of the pictures.
class Questioner {
 public:
  explicit Questioner(std::int64_t box_grid) : grid_(box_grid) {}

  // One question of `type`, or one with an empty text when all that the picture allows are in `asked`.
  Question ask(const Scene& scene, QuestionType type, RandomStream& random, const std::vector<std::string>& asked);

 private:
  struct Candidate {
    std::string pattern;
    std::string text;
    std::string content;
    std::size_t num_contents = 2;
    Kind kind = Kind::opacity;
    Place place = Place::both_lungs;
    const Finding* finding = nullptr;  // what the place shows, if anything
  };
  using Counts = std::map<std::string, std::map<std::string, std::int64_t>>;

  std::vector<Candidate> closed_candidates(const Scene& scene) const;
  std::vector<Candidate> open_candidates(const Scene& scene) const;
  std::vector<Candidate> single_candidates(const Scene& scene) const;
  const Candidate* choose(const std::vector<Candidate>& candidates, RandomStream& random,
                          const std::vector<std::string>& asked);
  Question closed_question(const Scene& scene, const Candidate& candidate, RandomStream& random);
  Question open_question(const Scene& scene, const Candidate& candidate, RandomStream& random);
  Question single_question(const Scene& scene, const Candidate& candidate, RandomStream& random);
  Question multi_question(const Scene& scene, RandomStream& random, const std::vector<std::string>& asked);
  // The least used key of `keys` in `counts_[name]`, ties by chance; counts it.
  std::string balanced(const std::string& name, const std::vector<std::string>& keys, RandomStream& random);

  std::int64_t grid_;
  Counts counts_;
  std::map<std::string, std::int64_t> pattern_counts_;
  std::array<std::int64_t, 3> num_chosen_{};  // closed, single choice, open
};

// One or two sentences a finding, as a radiologist's report would say it.
std::string report_text(const Scene& scene);

}  // namespace thinkvg::data::phantom
