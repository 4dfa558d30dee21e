//! The life of the process. In: the command line. Out: the exit code, once the one thing that was asked for is done and
//! said. Never: anything else.

use std::process::ExitCode;

use clap::Parser as _;
use millstream::cli::{self, Arguments};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            // Help and version are what was asked for; anything else is the user's to mend.
            if !error.use_stderr() {
                return ExitCode::SUCCESS;
            }
            eprintln!("hint: {}", cli::hint_for_arguments(std::env::args()));
            return ExitCode::from(2);
        }
    };
    match cli::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::from(fault.code())
        }
    }
}
