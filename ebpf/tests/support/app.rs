//! An application of the tests: a process in a pod's namespace and cgroup that does what it is told, line by line.

fn main() {}
