//! Many workloads read at once: `ps` of five hundred waits for files and for what is made of them.

/// Fewer are done before a thread has begun.
const LEAST: usize = 64;
const MAX_THREADS: usize = 4;

/// What `each` makes of the items that it makes something of, in their order: by several threads where they are many.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> Option<R> + Sync) -> Vec<R> {
    let all_of = |items: &[T]| -> Vec<R> { items.iter().filter_map(&each).collect() };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let (first, rest) = items.split_at(items.len().div_ceil(threads).max(LEAST).min(items.len()));
    std::thread::scope(|scope| {
        let begin = |share| {
            let all_of = &all_of;
            std::thread::Builder::new().spawn_scoped(scope, move || all_of(share)).map_err(|_| share)
        };
        let others: Vec<_> = rest.chunks(first.len().max(1)).map(begin).collect();
        let mut made = all_of(first);
        for other in others {
            made.extend(match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // A host that gives no more threads has this one.
                Err(share) => all_of(share),
            });
        }
        made
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_done_in_their_order_whatever_their_number_and_what_is_none_is_left_out() {
        for count in [0, 1, 64, 65, 201, 1000] {
            let items: Vec<u32> = (0..count).collect();
            let odd = in_parallel(&items, |item| (item % 2 == 1).then_some(item * 10));
            assert_eq!(
                odd,
                (0..count).filter(|item| item % 2 == 1).map(|item| item * 10).collect::<Vec<_>>()
            );
        }
    }
}
