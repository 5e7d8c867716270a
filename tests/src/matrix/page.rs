//! The tables as a page for people: docs/FAULTS.md.

use std::fmt::Write;

use super::{AT_ONCE, Cell, Gets, Row, Traced, process, upstream};

const HEAD: &str = "\
# Faults

What an agent gets when something breaks, for each kind of request that it may have on its way. The tables are what the
tests in `tests/e2e/faults.rs` expect: every cell is made to happen, with the real `moat`, bridge and sandbox, and
compared. The expectations live in [`tests/src/matrix/`](../tests/src/matrix.rs); this page is written from them by
`MOAT_REWRITE=1 cargo test -p moat-tests --test e2e -- faults::the_page`.

What holds in every cell: nothing is sent twice (the server counts), nothing hangs beyond the time that is given, an
error carries the request's own id and names what to do, and what failed is in the run's network trace, where there was
somebody left to write it.

| a cell says | the agent gets |
|---|---|
| *answer* | the upstream's own answer, whole |
| a number | this status, and the upstream's body if it has one; a stream ends as the upstream ended it |
| a number and a `kind` | a JSON-RPC error that moat made ([kinds](PROTOCOL.md#errors)) |
| *event* and a `kind` | what came of the stream, one event with such an error, and a proper end |
| *cut* | what came, and then a broken connection: a client opens the stream again, or resumes it |
| *open* | what came, and nothing more until the agent gives up, which the upstream then notices; R19 says why there is no limit (15 minutes without a head: `upstream_timeout`). Event streams get a comment every 15 s |
| *broken* | a connection that breaks: the relay itself is gone, and PID 1 starts it again |

Below that: the word of the network trace (`well` for none, `-` for no line), and *log* where the bridge's log has a
warning. All of it comes within 2 s on a busy machine unless another time is given; of *open*, that is the time in which the upstream notices.
";

/// The whole page.
#[must_use]
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    let tables: [(&str, &[&[Row]]); 2] = [
        ("The server", &[upstream::SERVER, upstream::OPEN, upstream::CONNECTION, upstream::NAMES]),
        ("The tunnel and the processes", &[process::ALL]),
    ];
    for (title, rows) in tables {
        // A string takes whatever is written to it.
        let _written = write!(
            page,
            "\n## {title}\n\n| what happens | call, JSON | call, stream | GET | listen | notification | DELETE |\n\
             |---|---|---|---|---|---|---|\n"
        );
        for row in rows.iter().copied().flatten() {
            let cells: Vec<String> = row.cells.iter().map(cell).collect();
            let _written = writeln!(page, "| {} | {} |", row.what, cells.join(" | "));
        }
    }
    page
}

fn cell(cell: &Cell) -> String {
    let mut text = match cell.gets {
        Gets::Answer => "*answer*".to_owned(),
        Gets::Status(status) => status.to_string(),
        Gets::Error(status, kind) => format!("{status} `{kind}`"),
        Gets::Event(kind) => format!("*event* `{kind}`"),
        Gets::Cut => "*cut*".to_owned(),
        Gets::Waits => "*open*".to_owned(),
        Gets::Broken => "*broken*".to_owned(),
    };
    text.push_str("<br>");
    text.push_str(match cell.traced {
        Traced::Well => "well",
        Traced::As(word) => word,
        Traced::Nothing => "-",
    });
    if cell.logged {
        text.push_str(", log");
    }
    if cell.within != AT_ONCE {
        // A string takes whatever is written to it.
        let _written = write!(text, ", {} s", cell.within / 1000);
    }
    text
}
