//! Bodies that come in time, and what becomes of those that nobody wants to the end.

use std::io;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout, timeout_at};

/// A body that says how long it is, and is no longer than what is read as a whole, is here by then. Attack: a client that sends
/// a byte a minute.
const SHORT_BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a body that is short.
const SHORT_BODY_BYTES: u64 = 4 << 20;
/// Between two pieces of another body. An archive may come from a pipe whose other end thinks for a while.
const PIECE_TIMEOUT: Duration = Duration::from_secs(600);
/// What is read, and for how long, of a body that was refused: a connection that is closed with bytes in it is reset, and the
/// client may never see the answer.
const UNWANTED_BYTES: usize = 64 << 20;
const UNWANTED_TIMEOUT: Duration = Duration::from_secs(10);

/// Called once a request is whole, or will never be: when this is dropped.
pub(crate) struct Asked(Option<Box<dyn FnOnce() + Send>>);

impl Asked {
    pub(crate) fn new(tell: impl FnOnce() + Send + 'static) -> Asked {
        Asked(Some(Box::new(tell)))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell();
        }
    }
}

/// This body; it ends with an error where its client keeps it waiting for too long. `asked` lasts as long as one that is short is
/// not here; one that is long is something to wait for.
pub(crate) fn in_time<B>(body: B, asked: Asked) -> Body
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<axum::BoxError>,
{
    let body = Body::new(body);
    // Most requests have none.
    if body.is_end_stream() {
        return body;
    }
    let is_short = body.size_hint().upper().is_some_and(|bytes| bytes <= SHORT_BODY_BYTES);
    limited(body, is_short.then_some((SHORT_BODY_TIMEOUT, asked)), PIECE_TIMEOUT)
}

fn limited(body: Body, whole: Option<(Duration, Asked)>, piece: Duration) -> Body {
    let (deadline, asked) = whole.map(|(whole, asked)| (Instant::now() + whole, asked)).unzip();
    let pieces = Pieces(Some(body.into_data_stream()), asked);
    let pieces = stream::unfold(pieces, move |mut pieces| async move {
        let whole = pieces.0.as_mut()?;
        let next = match deadline {
            Some(deadline) => timeout_at(deadline, whole.next()).await,
            None => timeout(piece, whole.next()).await,
        };
        match next {
            Ok(Some(next)) => Some((next, pieces)),
            Ok(None) => {
                pieces.0.take();
                None
            }
            Err(_) => {
                pieces.0 = None;
                let late =
                    io::Error::new(io::ErrorKind::TimedOut, "the rest of the body did not come in time");
                Some((Err(axum::Error::new(late)), pieces))
            }
        }
    });
    Body::from_stream(pieces)
}

/// A body until it has ended. What is dropped before is read for a while.
struct Pieces(Option<BodyDataStream>, #[expect(dead_code, reason = "to be dropped with it")] Option<Asked>);

impl Drop for Pieces {
    fn drop(&mut self) {
        let (Some(mut rest), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let read = async move {
            let mut count = 0;
            while let Some(Ok(piece)) = rest.next().await {
                count += piece.len();
                if count > UNWANTED_BYTES {
                    return;
                }
            }
        };
        runtime.spawn(timeout(UNWANTED_TIMEOUT, read));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some pieces, and then nothing, not even the end.
    fn stuck() -> Body {
        let pieces = [Ok::<_, io::Error>(Bytes::from_static(b"abc")), Ok(Bytes::from_static(b"de"))];
        Body::from_stream(stream::iter(pieces).chain(stream::pending()))
    }

    fn read(body: Body) -> (usize, Option<String>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut pieces, mut count) = (body.into_data_stream(), 0);
            while let Some(piece) = pieces.next().await {
                match piece {
                    Ok(piece) => count += piece.len(),
                    Err(error) => return (count, Some(error.to_string())),
                }
            }
            (count, None)
        })
    }

    #[test]
    fn a_body_that_never_ends_is_an_error() {
        let (soon, never) = (Duration::from_millis(20), Duration::from_secs(1000));
        for (whole, piece) in [(Some((soon, Asked(None))), never), (None, soon)] {
            let (count, error) = read(limited(stuck(), whole, piece));
            assert_eq!(count, 5);
            assert!(error.unwrap().contains("did not come in time"));
        }
        assert_eq!(read(in_time(Body::from("whole"), Asked(None))), (5, None));
        assert_eq!(read(in_time(Body::empty(), Asked(None))), (0, None));
    }
}
