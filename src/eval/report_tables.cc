#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "eval/report_data.h"
#include "thinkvg/core/html.h"

namespace thinkvg::eval {
namespace {

std::string csv_text(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + "\"";
}

std::string csv_number(const std::optional<double>& value) { return value ? fmt::format("{:.6g}", *value) : ""; }

std::string latex_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '\\':
        out += "\\textbackslash{}";
        break;
      case '~':
        out += "\\textasciitilde{}";
        break;
      case '^':
        out += "\\textasciicircum{}";
        break;
      case '&':
      case '%':
      case '$':
      case '#':
      case '_':
      case '{':
      case '}':
        out += '\\';
        out += c;
        break;
      case '\n':
        out += ' ';
        break;
      default:
        out += c;
    }
  }
  return out;
}

// "41.7 {\scriptsize [36.9, 46.4]}", in percent.
std::string latex_value(const ReportValue* value) {
  if (!value) return "--";
  std::string out = fmt::format("{:.1f}", 100 * value->mean);
  if (value->low && value->high) {
    out += fmt::format(" {{\\scriptsize [{:.1f}, {:.1f}]}}", 100 * *value->low, 100 * *value->high);
  }
  return out;
}

const ReportValue* overall(const ReportScore& score) { return score.overall ? &*score.overall : nullptr; }

std::string latex_p(const std::optional<double>& p) {
  if (!p) return "--";
  return *p < 0.001 ? "$<$0.001" : fmt::format("{:.3f}", *p);
}

std::string latex_difference(const std::optional<ReportValue>& value) {
  if (!value) return "--";
  std::string out = fmt::format("{:+.1f}", 100 * value->mean);
  if (value->low && value->high) {
    out += fmt::format(" {{\\scriptsize [{:+.1f}, {:+.1f}]}}", 100 * *value->low, 100 * *value->high);
  }
  return out;
}

std::string latex_table(const std::string& columns, const std::string& head, const std::string& rows,
                        const std::string& caption) {
  return fmt::format(
      "\\begin{{table}}[t]\n\\centering\n\\caption{{{}}}\n\\begin{{tabular}}{{{}}}\n\\toprule\n{} \\\\\n\\midrule\n{}"
      "\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n",
      caption, columns, head, rows);
}

std::string rule_text(const ReportData& data) {
  for (const ReportStage& stage : data.stages) {
    std::string boxes, reading;
    for (const auto& [name, value] : stage.rules) {
      if (name == "boxes") boxes = value;
      if (name == "reading") reading = value;
    }
    if (!boxes.empty()) {
      return fmt::format("Boxes: {}; reading: {}; 95\\,\\% intervals by bootstrap over pictures.", latex_text(boxes),
                         latex_text(reading.empty() ? "strict" : reading));
    }
  }
  return "";
}

// What the figures depend on, for whoever reads the source of the tables.
std::string origin_comments(const ReportData& data) {
  std::string out;
  for (const ReportStage& stage : data.stages) {
    if (stage.provenance.empty()) continue;
    std::string text = stage.label + ": ";
    for (const auto& [name, value] : stage.provenance)
      text += fmt::format("{}{} {}", text.ends_with(": ") ? "" : "; ", name, value);
    std::replace(text.begin(), text.end(), '\n', ' ');
    out += "% " + text + "\n";
  }
  return out;
}

// Those that any comparison has.
std::vector<ComparedScore> tested_scores(const ReportData& data) {
  std::vector<ComparedScore> out;
  for (const ComparedScore& score : compared_scores()) {
    const bool is_there =
        std::any_of(data.comparisons.begin(), data.comparisons.end(),
                    [&](const ReportComparison& comparison) { return (comparison.*score.value).has_value(); });
    if (score.is_tested && is_there) out.push_back(score);
  }
  return out;
}

}  // namespace

std::vector<ScoreColumn> score_columns(const ReportData& data) {
  std::vector<ScoreColumn> columns = {{"A-score", &ReportStage::a_score}, {"V-score", &ReportStage::v_score}};
  if (std::any_of(data.stages.begin(), data.stages.end(),
                  [](const ReportStage& stage) { return stage.ar_score.overall.has_value(); }))
    columns.push_back({"AR-score", &ReportStage::ar_score});
  return columns;
}

std::string scores_csv(const ReportData& data) {
  std::string out = "run,metric,group,value,low,high,n\n";
  for (const ReportStage& stage : data.stages) {
    const auto add = [&](const std::string& metric, const std::string& group, const ReportValue& value) {
      out += fmt::format("{},{},{},{},{},{},{}\n", csv_text(stage.label), metric, csv_text(group),
                         csv_number(value.mean), csv_number(value.low), csv_number(value.high), value.n);
    };
    for (const auto& [name, score] : stage.metrics) {
      if (score.overall) add(name, "all", *score.overall);
      for (const auto& [group, value] : score.by_type) add(name, "type:" + group, value);
      for (const auto& [group, value] : score.by_content) add(name, "content:" + group, value);
      for (const auto& [group, value] : score.by_region) add(name, "region:" + group, value);
    }
  }
  return out;
}

std::string differences_csv(const ReportData& data) {
  std::string out = "comparison,metric,difference,low,high,p,p_holm,detectable,p_mcnemar\n";
  for (const ReportComparison& comparison : data.comparisons) {
    for (const ComparedScore& score : compared_scores()) {
      const auto& value = comparison.*score.value;
      if (!value) continue;
      // McNemar's test is of right and wrong answers, which the A-score counts.
      const bool is_a_score = score.value == &ReportComparison::a_score;
      out += fmt::format("{},{},{},{},{},{},{},{},{}\n", csv_text(comparison.label), score.name,
                         csv_number(value->mean), csv_number(value->low), csv_number(value->high),
                         csv_number(value->p_value), csv_number(value->p_holm), csv_number(value->detectable),
                         csv_number(is_a_score ? comparison.mcnemar_p : std::nullopt));
    }
  }
  return out;
}

std::string runs_csv(const ReportData& data) {
  std::string out = "run,name,value\n";
  for (const ReportStage& stage : data.stages) {
    const auto add = [&](const std::string& name, const std::string& value) {
      out += fmt::format("{},{},{}\n", csv_text(stage.label), csv_text(name), csv_text(value));
    };
    for (const auto& [name, value] : stage.provenance) add(name, value);
    for (const auto& [name, value] : stage.rules) add("rule: " + name, value);
  }
  return out;
}

std::string scores_latex(const ReportData& data) {
  if (data.stages.empty()) return "% no evaluated run\n";
  const std::vector<ScoreColumn> scores = score_columns(data);
  std::string rows, titles, alignment;
  for (const ScoreColumn& score : scores) {
    titles += fmt::format(" & {}", score.title);
    alignment += "r";
  }
  for (const ReportStage& stage : data.stages) {
    rows += latex_text(stage.label);
    for (const ScoreColumn& score : scores) rows += " & " + latex_value(overall(stage.*score.score));
    rows +=
        fmt::format(" & {} & {} \\\\\n", latex_value(overall(stage.token_f1)), latex_value(overall(stage.parse_rate)));
  }
  std::string out = "% needs \\usepackage{booktabs}; figures in percent\n" + origin_comments(data);
  out +=
      latex_table("l" + alignment + "rr", "Run" + titles + " & Token F1 & Parsed", rows, "Scores. " + rule_text(data));
  std::vector<std::string> types;
  for (const ReportStage& stage : data.stages) {
    for (const auto& [type, count] : stage.num_questions_by_type) {
      if (std::find(types.begin(), types.end(), type) == types.end()) types.push_back(type);
    }
  }
  for (const ScoreColumn& score : scores) {
    std::string head = "Run", columns = "l", lines;
    for (const std::string& type : types) {
      head += " & " + latex_text(html::spaced(type));
      columns += "r";
    }
    for (const ReportStage& stage : data.stages) {
      lines += latex_text(stage.label);
      for (const std::string& type : types) {
        lines += " & " + latex_value((stage.*score.score).find(type));
      }
      lines += " \\\\\n";
    }
    out += "\n" + latex_table(columns, head, lines, fmt::format("{} by question type.", score.title));
  }
  if (data.comparisons.empty()) return out;
  std::string head = "Comparison", columns = "l", lines;
  const std::vector<ComparedScore> shown = tested_scores(data);
  for (const ComparedScore& score : shown) {
    head += fmt::format(" & {} & $p$", score.title);
    columns += "rr";
  }
  for (const ReportComparison& comparison : data.comparisons) {
    lines += latex_text(comparison.label);
    for (const ComparedScore& score : shown) {
      const auto& value = comparison.*score.value;
      lines += fmt::format(" & {} & {}", latex_difference(value), latex_p(value ? value->p_holm : std::nullopt));
    }
    lines += " \\\\\n";
  }
  return out + "\n" +
         latex_table(columns, head, lines,
                     "Paired differences in points; $p$ by bootstrap over pictures, adjusted by Holm's method.");
}

}  // namespace thinkvg::eval
