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
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
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
