//! The `bench` program; everything it does is in the library.

fn main() -> std::process::ExitCode {
    bench::cli::main()
}
