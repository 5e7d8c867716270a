//! What can happen to the tunnel and to the processes at its ends, and what comes of it.

use super::{AT_ONCE, Cell, Gets, Row, Traced};

/// The bridge that knew of the request is gone: what is left is the audit log's line about the credential.
const LOST: Cell = Cell {
    gets: Gets::Error(502, "tunnel_lost"),
    within: AT_ONCE,
    traced: Traced::Nothing,
    logged: false,
    arrives: 1,
};
const EVENT: Cell = Cell { gets: Gets::Event("tunnel_lost"), ..LOST };
const CUT: Cell = Cell { gets: Gets::Cut, ..LOST };
/// The bridge lives, and finds the tunnel closed when it wakes up.
const STALLED: Cell = Cell { within: 35_000, traced: Traced::As("cancelled"), ..LOST };
const DOWN: Cell = Cell { gets: Gets::Error(503, "tunnel_down"), within: 17_000, arrives: 0, ..LOST };

/// As if nothing had happened, within this time.
const fn in_order(within: u64) -> [Cell; 6] {
    [
        Cell::answer().within(within),
        Cell::answer().within(within),
        Cell::waits(),
        Cell::waits(),
        Cell::status(202).within(within),
        Cell::status(200).within(within),
    ]
}

/// The same; nothing of it can be written down.
const fn unrecorded() -> [Cell; 6] {
    let mut cells = in_order(AT_ONCE);
    let mut index = 0;
    while index < cells.len() {
        cells[index] = cells[index].recorded(Traced::Nothing, false);
        index += 1;
    }
    cells
}

/// The bridge is killed while it holds requests without an answer.
pub const BRIDGE_KILLED: Row = Row::all("bridge-killed", "the bridge is killed; no answer has begun", LOST);
/// The bridge is killed while answers pass.
pub const BRIDGE_KILLED_LATER: Row = Row::each(
    "bridge-killed-later",
    "the bridge is killed; answers have begun",
    [CUT, EVENT, CUT, CUT, CUT, CUT],
);
/// Requests that come before there is a bridge again.
pub const BRIDGE_AWAY: Row =
    Row::each("bridge-away", "requests come while the killed bridge is not back yet", in_order(8000));
/// The relay is killed; no answer has begun.
pub const RELAY_KILLED: Row =
    Row::all("relay-killed", "the relay is killed; no answer has begun", Cell::broken());
/// The relay is killed while answers pass.
pub const RELAY_KILLED_LATER: Row =
    Row::all("relay-killed-later", "the relay is killed; answers have begun", Cell::broken());
/// Requests right after the relay was killed.
pub const RELAY_BACK: Row = Row::each("relay-back", "requests once the killed relay is back", in_order(8000));
/// The bridge takes nothing and says nothing, and neither does its kernel.
pub const TUNNEL_STALLED: Row =
    Row::all("tunnel-stalled", "the bridge is stopped (SIGSTOP); nothing on the tunnel is answered", STALLED);
/// The tunnel's socket was removed, and the tunnel broke.
pub const SOCKET_GONE: Row =
    Row::all("socket-gone", "the tunnel's socket is removed, and the relay has to connect anew", DOWN);
/// No record can be written.
pub const NO_ROOM: Row = Row::each("no-room", "there is no room for the network trace", unrecorded());
/// The wall clock leaps ten years ahead.
pub const CLOCK_AHEAD: Row =
    Row::each("clock-ahead", "the host's clock leaps ten years ahead", in_order(AT_ONCE));
/// The wall clock falls back by ten years.
pub const CLOCK_BACK: Row =
    Row::each("clock-back", "the host's clock falls back by ten years", in_order(AT_ONCE));

/// All of them, for the page.
pub const ALL: &[Row] = &[
    BRIDGE_KILLED,
    BRIDGE_KILLED_LATER,
    BRIDGE_AWAY,
    RELAY_KILLED,
    RELAY_KILLED_LATER,
    RELAY_BACK,
    TUNNEL_STALLED,
    SOCKET_GONE,
    NO_ROOM,
    CLOCK_AHEAD,
    CLOCK_BACK,
];
