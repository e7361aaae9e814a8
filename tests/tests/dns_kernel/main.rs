//! The programs that learn names, in the running kernel, by BPF_PROG_TEST_RUN at the uplink's hooks: nothing is attached
//! anywhere. Needs root.

mod attacks;
mod corpus;
mod kernel;
mod learning;
mod streams;
mod telling;
mod wire;
