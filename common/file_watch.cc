#include "common/file_watch.h"

#include <sys/stat.h>

#include <utility>

namespace kvferry {
namespace {

constexpr Duration kBetweenLooks = std::chrono::seconds(1);

}  // namespace

FileWatch::FileWatch(std::vector<std::string> paths) : paths_(std::move(paths)), marks_(look()) {}

std::vector<FileWatch::Mark> FileWatch::look() const {
  std::vector<Mark> marks;
  for (const std::string& path : paths_) {
    struct stat facts {};
    Mark mark;
    if (!path.empty() && ::stat(path.c_str(), &facts) == 0)
      mark = {facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtim.tv_sec, facts.st_mtim.tv_nsec};
    marks.push_back(mark);
  }
  return marks;
}

bool FileWatch::changed(TimePoint now) {
  if (now - looked_ < kBetweenLooks) return false;
  looked_ = now;
  std::vector<Mark> marks = look();
  if (marks == marks_) return false;
  marks_ = std::move(marks);
  return true;
}

}  // namespace kvferry
