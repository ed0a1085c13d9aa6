//! Parse, run, exit code.

/// Less fragmentation and faster small allocations than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    frazil::faults::arm();
    frazil::cli::main()
}
