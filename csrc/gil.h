#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace specdec {

// Releases the GIL while the core works, and stands for one piece of work.
//
// While the interpreter shuts down, Python (before 3.14) ends every other thread that asks for the
// GIL by unwinding its stack, which C++ destructors turn into an abort of the whole process. So the
// interpreter's exit waits for the work of daemon threads, and whoever comes later sleeps for good.
class ReleasedGil {
 public:
  ReleasedGil() {
    if (exiting() && std::this_thread::get_id() != main_thread()) {
      pybind11::gil_scoped_release release;
      while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
    ++at_work();
    thread_state_ = PyEval_SaveThread();
  }
  ~ReleasedGil() {
    PyEval_RestoreThread(thread_state_);
    --at_work();
  }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

  // To be called once, by the module.
  static void wait_at_exit() {
    pybind11::module_::import("atexit").attr("register")(pybind11::cpp_function([] {
      main_thread() = std::this_thread::get_id();
      exiting() = true;
      pybind11::gil_scoped_release release;
      const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(5);
      while (at_work() > 0 && std::chrono::steady_clock::now() < patience) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }));
  }

 private:
  static std::atomic<bool>& exiting() {
    static std::atomic<bool> value{false};
    return value;
  }
  static std::thread::id& main_thread() {
    static std::thread::id value;
    return value;
  }
  static std::atomic<int>& at_work() {
    static std::atomic<int> value{0};
    return value;
  }

  PyThreadState* thread_state_;
};

}  // namespace specdec
