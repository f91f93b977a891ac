#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/core/settings.h"
#include "thinkvg/eval/metrics.h"
#include "thinkvg/grounding/box.h"
#include "thinkvg/rewards/run_warnings.h"

// The HTML report of one or several runs: one self-contained file (pictures embedded, no network) with the stages side
// by side, training curves, and cases with reference and predicted boxes on the picture next to the reasoning.
// All functions here are free of global state; calls on different data may run concurrently.
namespace thinkvg::eval {

// Settings of `thinkvg report`.
struct ReportOptions {
  // Each a folder, or "label=folder". Taken apart by what they hold:
  //   evaluation  metrics.json (scores_to_json), and predictions.jsonl where there are cases to show
  //   training    metrics.jsonl, config.yaml, manifest.json
  //   parent      neither: its direct subfolders of those kinds, in the order of stages.json, else by name
  std::vector<std::string> runs;
  std::string out;
  std::string title;
  std::string images;
  std::string tables;
  std::string published = "auto";
  std::int64_t num_cases = 36;
  std::int64_t picture_side = 420;
  std::int64_t jpeg_quality = 82;
  std::int64_t seed = 0;

  void visit(SettingsVisitor& v) {
    v.setting("runs", runs, "Run folders, each FOLDER or LABEL=FOLDER; the same as naming them without a flag.");
    v.setting("out", out, "The HTML file to write.");
    v.setting("title", title, "Heading; by default the title of stages.json.");
    v.setting("images", images, "Root of the pictures, where they are no longer at the places that the runs name.");
    v.setting("tables", tables, "Folder for the tables as CSV and LaTeX; empty: only in the page.");
    v.setting("published", published,
              "Show published GEMeX figures beside these runs: always, never, or auto (where the data are GEMeX's).");
    v.setting(
        "num_cases", num_cases,
        "Number of cases to show, balanced by question type, right or wrong, and whether the run before it was, too.");
    v.setting("picture_side", picture_side, "Longest side of the embedded pictures in pixels.");
    v.setting("jpeg_quality", jpeg_quality, "JPEG quality of the embedded pictures, 1 to 100.");
    v.setting("seed", seed, "Which cases are drawn; the same seed draws the same ones.");
  }
};

// A score in [0, 1] with its 95 % interval, where there is one.
struct ReportValue {
  double mean = 0;
  std::optional<double> low, high;
  std::int64_t n = 0;  // questions that it is a mean over; 0: not said
  // Of differences: the test against 0, alone and adjusted by Holm's method for all tests of the table; and the
  // smallest difference that would be found 4 times out of 5.
  std::optional<double> p_value, p_holm, detectable;
};

struct ReportScore {
  std::optional<ReportValue> overall;
  std::vector<std::pair<std::string, ReportValue>> by_type;  // question type name, in the file's order
  std::vector<std::pair<std::string, ReportValue>> by_content, by_region;

  // Null when the type has no such score (open questions have no A-score).
  const ReportValue* find(const std::string& type) const;
};

// What one reward said about an answer.
struct ReportReward {
  std::string name;
  std::optional<double> value;  // none: not applicable
  std::string reason;
};

// One line of predictions.jsonl: a question with its reference and what the model said. All boxes, and the numbers
// inside `think`, `response` and `reference_think`, are in `frame`.
struct ReportPrediction {
  std::string id;
  std::string image;                 // relative to the image root
  std::filesystem::path image_file;  // where the evaluation read it
  grounding::ImageSize size;         // original pixels; where unknown, an empty canvas that the boxes fit in
  bool has_picture = true;           // false: boxes are drawn on the empty canvas
  std::string type;
  std::string content_type;
  std::string question;
  std::vector<std::string> choices;
  std::string reference_answer;
  std::string reference_think;
  std::vector<grounding::Region> reference_regions;
  grounding::BoxFrame frame;
  std::string response;   // the model's whole text
  bool complete = false;  // it could be parsed
  std::string problem;    // why not, in words
  std::string answer;
  std::string think;
  std::vector<grounding::Region> regions;
  std::optional<double> a_score;   // none: this type of question is not graded by its answer
  std::optional<double> v_score;   // none: the reference has no boxes
  std::optional<double> token_f1;  // none: no open answer, or the file does not say it
  std::optional<JudgeScore> judge;
  std::optional<double> confidence;  // probability that the model gave its answer
  std::optional<double> reward;      // of answers that grpo logged: the weighted sum, and its parts
  std::vector<ReportReward> rewards;

  // The answer is right; where answers are not graded, the boxes are (V-score of at least 0.5).
  bool is_right() const;
};

// What a system scores that looks at no picture.
struct ReportBaseline {
  std::string title;
  ReportScore a_score, v_score, token_f1;
};

// An evaluated stage, such as the untrained model, the blind baseline, SFT, or SFT+GRPO.
struct ReportStage {
  std::string label;
  std::string note;
  std::filesystem::path folder;
  std::int64_t num_questions = 0;
  std::int64_t num_images = 0;  // 0: not said
  std::vector<std::pair<std::string, std::int64_t>> num_questions_by_type;
  ReportScore a_score;
  ReportScore v_score;
  ReportScore ar_score;    // of a judge
  ReportScore mean_score;  // mean of A and V
  ReportScore token_f1;    // of open answers
  ReportScore parse_rate;
  std::vector<std::pair<std::string, ReportScore>> metrics;  // all that the file has, in the order of metric_list()
  std::vector<ReportBaseline> baselines;
  std::vector<std::pair<std::string, std::string>> provenance;  // subset, prompt, judge, hashes, seed, version
  std::vector<std::pair<std::string, std::string>> rules;  // how the scores were computed, as metrics.json names it
  Json detection;  // detection_to_json; null where the evaluation did not ask for it
  std::vector<ReportPrediction> predictions;
  bool show_cases = true;
  std::string config;  // text of config.yaml; empty where there is none
  Json manifest;       // null where there is none
};

// One question with several answers: of the shown stages, or of one run at several steps.
struct ReportCase {
  ReportPrediction reference;                            // one of the answers; its reference part describes the case
  std::string jpeg;                                      // encoded thumbnail; empty: boxes are drawn on an empty canvas
  std::vector<std::optional<ReportPrediction>> answers;  // one a label
};

struct ReportTraining {
  std::string label;
  std::string note;
  std::filesystem::path folder;
  std::map<std::string, std::vector<std::pair<std::int64_t, double>>> curves;  // metric -> (step, value), steps rising
  std::string config;                                                          // text of config.yaml
  Json manifest;
  std::vector<rewards::RunWarning> warnings;  // of grpo: what looks wrong
  // Of grpo: the questions of samples/watched.jsonl, answered at some of the steps.
  std::vector<std::string> watched_labels;
  std::vector<ReportCase> watched;
};

// Paired differences of two stages, second minus first.
struct ReportComparison {
  std::string label;
  std::string note;
  std::optional<ReportValue> a_score, v_score, mean;  // `mean` of each holds the difference
  std::optional<double> mcnemar_p;                    // exact test on the graded questions
  std::optional<ReportValue> token_f1;                // of open answers
  std::optional<ReportValue> ar_score;                // where one judge graded both
};

// A score that comparisons tell, in the order of tables.
struct ComparedScore {
  const char* name;   // in files
  const char* title;  // for people
  std::optional<ReportValue> ReportComparison::*value;
  bool is_tested;  // takes part in Holm's adjustment; the mean of two that do takes none
};
const std::vector<ComparedScore>& compared_scores();

// All that the page shows.
struct ReportData {
  std::string title;
  std::string description;
  std::vector<ReportStage> stages;
  std::vector<ReportTraining> trainings;
  std::vector<ReportComparison> comparisons;
  std::vector<std::string> case_labels;
  std::vector<ReportCase> cases;
  std::int64_t num_case_candidates = 0;  // how many questions the cases were drawn from
  bool show_published = false;           // GEMeX's published figures, marked as such
};

// Reads the runs and draws the cases. Format of stages.json in a parent folder:
//   {"title", "description", "stages": [{"folder", "label", "note", "cases": true|false}],
//    "comparisons": [{"label", "note", "a_score": {"difference", "low", "high"}, "v_score": {..}, "mean": {..}}]}
// Only "stages" and its "folder" are needed; a comparison may also have the layout of difference_to_json. Without
// comparisons, the last stage is compared with each earlier one that was asked the same questions. Throws
// std::invalid_argument for wrong options and std::runtime_error naming the file (and line) that is missing or damaged.
ReportData read_report(const ReportOptions& options);

// The page. The same data give the same bytes.
std::string render_report(const ReportData& data);

// The scores of all runs, one figure a line: run,metric,group,value,low,high,n; and the same of the paired differences:
// comparison,metric,difference,low,high,p,p_holm,detectable,p_mcnemar; and what each run's scores depend on (rules,
// subset, prompt, judge, hashes, seed, version): run,name,value.
std::string scores_csv(const ReportData& data);
std::string differences_csv(const ReportData& data);
std::string runs_csv(const ReportData& data);
// The summary, the scores by question type, and the paired differences as LaTeX tables (package booktabs).
std::string scores_latex(const ReportData& data);

// read_report, render_report, and the file written atomically; and the tables, where a folder is named for them.
void write_report(const ReportOptions& options);

}  // namespace thinkvg::eval
