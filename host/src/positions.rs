//! Where a claim goes on in each input stream. In: the last record's positions and the streams as they are now. Out: positions
//! in the order of the inputs, or why the handler must stop. Pure. Never: skips an event without being told to.

use crate::claim::Claim;
use crate::inputs::Input;
use crate::journal::Position;
use crate::settings::OnLostEvents;

/// Why a stream cannot be read on from where we were. Each needs a person.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// A stream of the same name, but not the one we know.
    #[error(
        "stream {stream} was deleted and made anew since event {decided} was decided; hint: if it was restored from a backup, go on with \
         `millstream adopt {handler}`; else deploy the handler under a new name, to build its documents from the new stream"
    )]
    Remade { stream: String, decided: u64, handler: String },
    /// The stream knows less than we decided.
    #[error(
        "stream {stream} ends at {last}, before the decided event {decided}: an older backup was restored; \
         hint: restore a newer one, or deploy the handler under a new name"
    )]
    Restored { stream: String, last: u64, decided: u64 },
    /// The stream dropped events that nobody decided.
    #[error(
        "stream {stream} now begins at {first}, so {lost} messages after the decided event {decided} are gone; \
         hint: go on without them with `millstream deploy ... --set on_lost_events=continue`"
    )]
    Lost { stream: String, first: u64, lost: u64, decided: u64 },
}

/// Lines the claim's positions up with the inputs, and checks that each stream is still the one we know. Where one is not, all positions
/// stay as they are: what is still told of the claim must lack none.
///
/// # Errors
/// A stream that is another one, an older one, or one that lost events where the handler may not go on without them.
pub(crate) fn place(handler: &str, claim: &mut Claim, inputs: &[Input], on_lost: OnLostEvents) -> Result<(), Error> {
    let (mut known, mut placed, mut all_lost) = (claim.positions.clone(), Vec::new(), 0);
    for input in inputs {
        let at = known.iter().position(|position| position.stream == input.stream);
        let position = at.map(|index| known.remove(index)).filter(|_| !claim.begun.contains(&input.stream));
        // Where nothing was decided, a stream that was made anew is as good as the one before.
        let position = position.filter(|position| claim.counts.delivered > 0 || position.created == input.created);
        let mut position = position.unwrap_or_else(|| begin(input));
        let lost = check(handler, &position, input, on_lost)?;
        all_lost += lost;
        position.sequence += lost;
        placed.push(position);
    }
    // Streams that are no longer read keep their positions, in case they come back.
    placed.append(&mut known);
    claim.counts.lost += all_lost;
    claim.positions = placed;
    Ok(())
}

/// Where a stream begins for whoever has decided nothing of it: what it has dropped before is nobody's.
pub(crate) fn begin(input: &Input) -> Position {
    let (stream, created) = (input.stream.clone(), input.created);
    Position { stream, created, sequence: input.first.saturating_sub(1) }
}

/// Answers how many events the stream dropped before we decided them.
fn check(handler: &str, position: &Position, input: &Input, on_lost: OnLostEvents) -> Result<u64, Error> {
    let (stream, decided) = (input.stream.clone(), position.sequence);
    if position.created != input.created {
        return Err(Error::Remade { stream, decided, handler: handler.to_owned() });
    }
    if decided > input.last {
        return Err(Error::Restored { stream, last: input.last, decided });
    }
    let lost = input.first.saturating_sub(decided + 1);
    if lost == 0 {
        return Ok(0);
    }
    match on_lost {
        OnLostEvents::Continue => {
            tracing::error!(stream, lost, "the stream dropped events before they were decided");
            Ok(lost)
        }
        OnLostEvents::Stop => Err(Error::Lost { stream, first: input.first, lost, decided }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Counts;

    fn input(first: u64, last: u64) -> Input {
        Input { stream: "S".to_owned(), filters: vec!["s.>".to_owned()], created: 7, first, last, direct: true }
    }

    fn placed(decided: u64, created: i64, input: Input, on_lost: OnLostEvents) -> Result<(u64, u64), Error> {
        let position = Position { stream: "S".to_owned(), created, sequence: decided };
        let counts = Counts { delivered: decided, ..Counts::default() };
        let mut claim = Claim { positions: vec![position], counts, ..Claim::default() };
        place("h", &mut claim, &[input], on_lost)?;
        Ok((claim.positions[0].sequence, claim.counts.lost))
    }

    #[test]
    fn a_sound_stream_goes_on_where_it_was() {
        for (decided, first, last) in [(0, 0, 0), (0, 1, 0), (499, 500, 900), (7, 1, 7), (7, 8, 7), (7, 8, 20)] {
            assert_eq!(
                placed(decided, 7, input(first, last), OnLostEvents::Stop),
                Ok((decided, 0)),
                "{decided} {first} {last}"
            );
        }
    }

    #[test]
    fn lost_events_stop_or_are_counted_and_passed() {
        let stopped = placed(7, 7, input(11, 20), OnLostEvents::Stop).unwrap_err();
        assert_eq!(stopped, Error::Lost { stream: "S".to_owned(), first: 11, lost: 3, decided: 7 });
        assert!(stopped.to_string().contains("so 3 messages after the decided event 7 are gone"), "{stopped}");
        assert_eq!(placed(7, 7, input(11, 20), OnLostEvents::Continue), Ok((10, 3)));
        let nothing_decided = placed(0, 7, input(31, 80), OnLostEvents::Stop).unwrap_err();
        assert_eq!(nothing_decided, Error::Lost { stream: "S".to_owned(), first: 31, lost: 30, decided: 0 });
    }

    #[test]
    fn a_stream_that_nobody_knew_begins_where_it_begins() {
        // Not known at all; or since this claim, and more was dropped since.
        let begun = Position { stream: "S".to_owned(), created: 7, sequence: 499 };
        for (positions, begun) in [(vec![], vec![]), (vec![begun], vec!["S".to_owned()])] {
            let mut claim = Claim { positions, begun, ..Claim::default() };
            place("h", &mut claim, &[input(600, 900)], OnLostEvents::Stop).unwrap();
            assert_eq!((claim.positions[0].sequence, claim.counts.lost), (599, 0));
        }
    }

    #[test]
    fn another_stream_of_the_same_name_and_an_older_backup_stop() {
        let anew = placed(7, 6, input(1, 20), OnLostEvents::Continue);
        assert_eq!(anew, Err(Error::Remade { stream: "S".to_owned(), decided: 7, handler: "h".to_owned() }));
        let position = |stream: &str| Position { stream: stream.to_owned(), created: 6, sequence: 7 };
        let counts = Counts { delivered: 14, ..Counts::default() };
        let mut claim = Claim { positions: vec![position("T"), position("S")], counts, ..Claim::default() };
        place("h", &mut claim, &[input(1, 20)], OnLostEvents::Stop).unwrap_err();
        assert_eq!(claim.positions, [position("T"), position("S")], "none is forgotten");
        let backup = placed(7, 7, input(1, 5), OnLostEvents::Continue);
        assert_eq!(backup, Err(Error::Restored { stream: "S".to_owned(), last: 5, decided: 7 }));
    }

    #[test]
    fn a_stream_made_anew_before_anything_was_decided_begins_where_it_begins() {
        assert_eq!(placed(0, 6, input(31, 80), OnLostEvents::Stop), Ok((30, 0)));
    }

    #[test]
    fn inputs_set_the_order_and_unread_streams_keep_their_positions() {
        let position = |stream: &str, sequence| Position { stream: stream.to_owned(), created: 7, sequence };
        let mut claim = Claim { positions: vec![position("OLD", 4), position("S", 3)], ..Claim::default() };
        place("h", &mut claim, &[input(1, 9), Input { stream: "NEW".to_owned(), ..input(1, 9) }], OnLostEvents::Stop)
            .unwrap();
        assert_eq!(claim.positions, [position("S", 3), position("NEW", 0), position("OLD", 4)]);
    }
}
