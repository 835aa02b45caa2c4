#include "engine/bench/report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <ctime>
#include <thread>

#include "common/text.h"

namespace kvferry::bench {
namespace {

const char* operation_of(const Case& tested) {
  return tested.operation == Operation::read ? "read" : "write";
}

double ratio_of(const Row& row) {
  const Medians medians = row.medians();
  return medians.limit > 0 ? medians.product / medians.limit : 0;
}

std::string verdict_text(const std::optional<Verdict>& verdict) {
  return verdict ? fmt::format("{} {}", verdict->reached ? "ok  " : "MISS", verdict->goal) : std::string();
}

std::string percentiles_json(const Samples& samples) {
  return fmt::format(R"({{"samples":{},"p50":{:.2f},"p90":{:.2f},"p99":{:.2f},"p999":{:.2f}}})", samples.size(),
                     samples.median(), samples.percentile(0.9), samples.percentile(0.99), samples.percentile(0.999));
}

std::string verdict_json(const std::optional<Verdict>& verdict) {
  if (!verdict) return "null";
  return fmt::format(R"({{"goal":{},"reached":{}}})", json_quote(verdict->goal), verdict->reached);
}

std::string row_json(const Row& row) {
  return fmt::format(
      R"({{"fabric":"{}","operation":"{}","block":{},"count":{},"layout":"{}","threads":{},"us":{},"limit_us":{},)"
      R"("four_raw_us":{:.2f},"memcpy_us":{:.2f},"ratio":{:.3f},"gb_per_s":{:.3f},"cpu_s_per_gb":{},"verdict":{}}})",
      row.tested.fabric, operation_of(row.tested), row.tested.block, row.tested.count,
      row.tested.scattered ? "scattered" : "contiguous", row.tested.threads, percentiles_json(row.product),
      percentiles_json(row.limit), row.four_raw.median(), row.copied.median(), ratio_of(row), row.gigabytes_per_second,
      row.cpu_per_gb ? fmt::format("{:.3f}", *row.cpu_per_gb) : "null", verdict_json(judge(row.tested, row.medians())));
}

std::string figure_json(const Figure& figure) {
  return fmt::format(R"({{"name":{},"value":{:.4f},"unit":{},"verdict":{}}})", json_quote(figure.name), figure.value,
                     json_quote(figure.unit), verdict_json(figure.verdict));
}

template <class T, class Each>
std::string list_json(const std::vector<T>& items, Each each) {
  std::string out = "[";
  for (const T& item : items) out += (out.size() > 1 ? ",\n " : "\n ") + each(item);
  return out + "\n]";
}

}  // namespace

std::string header_line() {
  return fmt::format("{:6} {:5} {:>13} {:>2} {:>10} {:>10} {:>10} {:>10} {:>7} {:>8} {:>10} {:>6} {:>10}  {}", "fabric",
                     "op", "blocks", "t", "p50 us", "p90", "p99", "p99.9", "GB/s", "CPU s/GB", "raw p50", "ratio",
                     "memcpy", "goal");
}

std::string line_of(const Row& row) {
  const Samples& samples = row.product;
  std::string line = fmt::format(
      "{:6} {:5} {:>13} {:>2} {:>10.1f} {:>10.1f} {:>10.1f} {:>10.1f} {:>7.2f} {:>8} {:>10.1f} {:>6.2f} {:>10.1f}  {}",
      row.tested.fabric, operation_of(row.tested), shape_of(row.tested) + (row.tested.scattered ? "" : " c"),
      row.tested.threads, samples.median(), samples.percentile(0.9), samples.percentile(0.99),
      samples.percentile(0.999), row.gigabytes_per_second,
      row.cpu_per_gb ? fmt::format("{:.2f}", *row.cpu_per_gb) : "?", row.limit.median(), ratio_of(row),
      row.copied.median(), verdict_text(judge(row.tested, row.medians())));
  if (row.four_raw.size() > 0) line += fmt::format(" (four raw: {:.1f} us)", row.four_raw.median());
  return line;
}

std::string line_of(const Figure& figure) {
  return fmt::format("{:66} {:>12.2f} {:6} {}", figure.name, figure.value, figure.unit, verdict_text(figure.verdict));
}

std::string to_json(const std::vector<Row>& rows, const std::vector<Figure>& figures) {
  const std::time_t now = std::time(nullptr);
  char date[16];
  std::tm parts{};
  std::strftime(date, sizeof date, "%Y-%m-%d", ::gmtime_r(&now, &parts));
  return fmt::format("{{\"cores\":{},\"date\":\"{}\",\"cases\":{},\"figures\":{}}}\n",
                     std::thread::hardware_concurrency(), date, list_json(rows, row_json),
                     list_json(figures, figure_json));
}

std::vector<std::string> missed_goals(const std::vector<Row>& rows, const std::vector<Figure>& figures,
                                      size_t& judged) {
  std::vector<std::string> missed;
  judged = 0;
  for (const Row& row : rows) {
    const auto verdict = judge(row.tested, row.medians());
    judged += verdict.has_value();
    if (verdict && !verdict->reached) missed.push_back(line_of(row));
  }
  for (const Figure& figure : figures) {
    judged += figure.verdict.has_value();
    if (figure.verdict && !figure.verdict->reached) missed.push_back(line_of(figure));
  }
  return missed;
}

Progress::Progress() : shown_(::isatty(STDERR_FILENO) == 1) {}

void Progress::show(const std::string& text) {
  if (shown_) fmt::print(stderr, "\r\033[K{}", text);
}

void Progress::clear() {
  if (shown_) fmt::print(stderr, "\r\033[K");
}

}  // namespace kvferry::bench
