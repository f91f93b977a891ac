#include "thinkvg/train/answer_sequences.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <algorithm>

#include "tests/support/tiny_sft.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/wrappers.h"
#include "thinkvg/train/example.h"
#include "thinkvg/train/trained_model.h"

namespace thinkvg::train {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Conversations {
  Conversations()
      : bundle(models::load_bundle(test::tiny_run().model)),
        builder(bundle, {{}, test::tiny_run().images.string(), true, {}}) {
    const auto all = data::open_dataset(test::tiny_run().train);
    // Questions about one picture as the turns of a conversation.
    for (std::int64_t i = 0; i < all->size() && turns.size() < 3; ++i)
      if (turns.empty() || all->get(i).image == turns.front().image) turns.push_back(all->get(i));
    joined = turns.front();
    joined.more_turns.assign(turns.begin() + 1, turns.end());
  }

  generation::Question question(const data::Sample& sample) { return builder.build({sample}).front(); }
  std::string text(const std::vector<std::int64_t>& ids) const { return bundle.tokenizer->decode(ids, true); }

  models::ModelBundle bundle;
  generation::QuestionBuilder builder;
  std::vector<data::Sample> turns;
  data::Sample joined;
};

TEST(TrainingSequenceTest, EveryAnswerOfAConversationIsLearned) {
  Conversations c;
  ASSERT_EQ(c.turns.size(), 3u);
  const generation::Question question = c.question(c.joined);
  const TrainingSequence sequence = make_training_sequence(c.bundle, {"", "Answer."}, question, true);
  // What carries loss is exactly the answers with their ends of turn, in order.
  std::vector<std::int64_t> learned;
  for (const std::int64_t place : sequence.targets) learned.push_back(sequence.ids[static_cast<std::size_t>(place)]);
  std::string expected;
  for (const data::Sample& turn : c.turns)
    expected += target_text(turn, question.geometry(), question.frame, true) + "<|im_end|>";
  EXPECT_EQ(c.text(learned), expected);
  // The whole is the chat with every question behind the answers before it.
  const std::string whole = c.text(sequence.ids);
  std::size_t at = 0;
  for (const data::Sample& turn : c.turns) {
    at = whole.find(turn.prompt() + "\nAnswer.<|im_end|>", at);
    ASSERT_NE(at, std::string::npos) << whole;
  }
  EXPECT_EQ(sequence.targets.back(), sequence.length() - 1) << "nothing stands behind the last answer";
  EXPECT_EQ(sequence.positions.size(1), sequence.length() - 1);
  EXPECT_EQ(sequence.image_rows, question.prompt.image_rows);
}

// One turn is built out of its two parts, several as a whole: the two ways must agree.
TEST(TrainingSequenceTest, TheFirstTurnIsThatOfItsQuestionAlone) {
  Conversations c;
  const generation::Question together = c.question(c.joined), alone = c.question(c.turns.front());
  const TrainingSequence whole = make_training_sequence(c.bundle, {}, together, true),
                         first = make_training_sequence(c.bundle, {}, alone, true);
  ASSERT_LT(first.length(), whole.length());
  EXPECT_TRUE(std::equal(first.ids.begin(), first.ids.end(), whole.ids.begin()));
  EXPECT_TRUE(std::equal(first.targets.begin(), first.targets.end(), whole.targets.begin()));
  EXPECT_TRUE(at::equal(first.positions, whole.positions.narrow(1, 0, first.length() - 1)));
}

// The loss of a conversation is the sum of its turns', each behind what was said before: by one plain forward pass.
TEST(TrainingSequenceTest, LossIsThatOfEachTurnBehindTheOthers) {
  Conversations c;
  const generation::Question question = c.question(c.joined);
  const std::vector<TrainingSequence> sequences = {make_training_sequence(c.bundle, {}, question, true)};
  const at::NoGradGuard no_grad;
  const double loss = answer_loss_sum(c.bundle, c.builder, sequences).item<double>();

  const at::Tensor ids = at::tensor(sequences[0].ids, at::kLong);
  nn::PackedAttention attention({{ids.size(0)}, {}});
  models::VisionLanguageModel& model = *c.bundle.model;
  const at::Tensor positions = model.token_positions(sequences[0].ids, question.grids).positions;
  const at::Tensor embeddings = model.embed(ids, at::tensor(sequences[0].image_rows, at::kLong), question.features);
  const at::Tensor log_probs = model.logits(model.decode(embeddings, positions, attention)).log_softmax(1);
  double expected = 0;
  for (const std::int64_t place : sequences[0].targets)
    expected -= log_probs[place - 1][sequences[0].ids[static_cast<std::size_t>(place)]].item<double>();
  EXPECT_NEAR(loss, expected, 1e-3);
}

TEST(PackPassesTest, FillsPassesByLengthOrInOrder) {
  EXPECT_THAT(pack_passes({2, 3, 3, 4}, {6, 1}, true), ElementsAre(ElementsAre(0, 3), ElementsAre(1, 2)));
  EXPECT_THAT(pack_passes({2, 3, 3, 4}, {6, 1}, false), ElementsAre(ElementsAre(0, 1), ElementsAre(2), ElementsAre(3)));
}

// Whatever is packed: every sequence once, no pass above the limit but for a single longer sequence, a multiple of the
// workers' number where there are sequences enough, and, by length, no worker far behind the others.
TEST(PackPassesTest, WorkersGetEvenShares) {
  RandomStream random({7});
  for (int round = 0; round < 200; ++round) {
    std::vector<std::int64_t> lengths(static_cast<std::size_t>(random.below(40)));
    for (std::int64_t& length : lengths) length = 1 + static_cast<std::int64_t>(random.below(400));
    const auto workers = static_cast<std::int64_t>(1 + random.below(4));
    const EvenSplit split{static_cast<std::int64_t>(300 + random.below(2000)), workers};
    for (const bool by_length : {false, true}) {
      const auto passes = pack_passes(lengths, split, by_length);
      std::vector<std::int64_t> seen;
      std::int64_t longest = 0, longest_sequence = 0, total = 0;
      for (const auto& pass : passes) {
        ASSERT_FALSE(pass.empty());
        std::int64_t length = 0;
        for (const std::int64_t place : pass) {
          seen.push_back(place);
          length += lengths[static_cast<std::size_t>(place)];
        }
        EXPECT_TRUE(length <= split.limit || pass.size() == 1);
        longest = std::max(longest, length);
        total += length;
      }
      for (const std::int64_t length : lengths) longest_sequence = std::max(longest_sequence, length);
      std::sort(seen.begin(), seen.end());
      for (std::size_t i = 0; i < lengths.size(); ++i) ASSERT_EQ(seen.at(i), static_cast<std::int64_t>(i));
      ASSERT_EQ(seen.size(), lengths.size());
      if (by_length && std::ssize(lengths) >= workers && std::ssize(passes) % workers == 0 && !passes.empty())
        EXPECT_LE(longest, total / std::ssize(passes) + longest_sequence) << "no pass is more than a sequence behind";
    }
  }
  EXPECT_THAT(pack_passes({3, 3, 3, 3, 3}, {100, 2}, true), ElementsAre(ElementsAre(0, 2, 4), ElementsAre(1, 3)));
  EXPECT_THAT(pack_passes({9, 1, 1, 1, 8}, {100, 2}, false), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3, 4)));
  EXPECT_THAT(pack_passes({5, 5}, {100, 4}, true), ElementsAre(ElementsAre(0), ElementsAre(1)));
}

TEST(SftTurnsTest, ConversationsAreOneSequence) {
  const test::TemporaryFolder folder;
  Conversations c;
  Json rows = Json::array();
  for (int row = 0; row < 4; ++row) {
    Json turns = Json::array();
    for (const data::Sample& turn : c.turns) {
      turns.push_back({{"from", "human"}, {"value", (turns.empty() ? "<image>\n" : "") + turn.prompt()}});
      turns.push_back({{"from", "gpt"}, {"value", turn.answer}});
    }
    rows.push_back({{"id", std::to_string(row)}, {"image", c.turns.front().image}, {"conversations", turns}});
  }
  write_file_atomically(folder / "train.json", rows.dump());
  SftOptions options = test::tiny_sft((folder / "joined").string());
  options.data.path = (folder / "train.json").string();
  options.run.steps = 1;
  run_sft(options);
  options.turns = "apart";
  options.batch_size = 12;
  options.out = (folder / "apart").string();
  run_sft(options);
  const Json joined = test::metrics_of(folder / "joined").front(), apart = test::metrics_of(folder / "apart").front();
  EXPECT_EQ(joined["num_target_tokens"], apart["num_target_tokens"]);
  EXPECT_LT(joined["num_tokens"].get<int>(), apart["num_tokens"].get<int>()) << "the picture is there once";
  EXPECT_EQ(joined["epoch"], 1.0);
  EXPECT_EQ(apart["epoch"], 1.0);
  EXPECT_NE(joined["loss"], apart["loss"]);
}

}  // namespace
}  // namespace thinkvg::train
