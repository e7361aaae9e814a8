//! The binary `egress`; see [`egress_user::cli`].

fn main() -> std::process::ExitCode {
    egress_user::cli::main()
}
