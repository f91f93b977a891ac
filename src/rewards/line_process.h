#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace thinkvg::rewards {

// A shell command that answers line by line. Its process group is killed with it.
class LineProcess {
 public:
  // Throws std::runtime_error when no process can be made. A command that the shell cannot find ends at once; the first
  // exchange tells.
  explicit LineProcess(const std::string& command);
  ~LineProcess();
  LineProcess(const LineProcess&) = delete;
  LineProcess& operator=(const LineProcess&) = delete;

  struct Exchange {
    std::vector<std::string> lines;  // replies, as many as came
    std::string problem;             // why there are fewer than lines sent, with the end of standard error; else empty
  };
  // Sends the lines (without their ends) and waits for as many. Gives up after `timeout` seconds without a new one.
  // After a problem the process is of no more use.
  Exchange exchange(const std::vector<std::string>& lines, double timeout);

 private:
  void read_errors();
  std::string describe_end();
  std::string with_errors(std::string problem);

  pid_t pid_ = -1;
  int input_ = -1;  // a socket, so that writing to a dead process raises no signal
  int output_ = -1;
  int errors_ = -1;
  std::string buffer_;  // of the output, behind the last whole line
  std::string last_errors_;
};

}  // namespace thinkvg::rewards
