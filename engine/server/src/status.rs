//! Block status put together from its parts. Pure.

/// Most runs in one answer.
const MAX_RUNS: usize = 8192;

/// Runs (length, flags) that cover the request from its beginning, neighbours of equal
/// flags made one. Parts are (offset in the request, runs), in any order. Ends early where
/// a part is missing, after `MAX_RUNS`, or with `one` after the first run; never empty.
pub fn compose(mut parts: Vec<(u64, Vec<(u64, u32)>)>, length: u64, one: bool) -> Vec<(u64, u32)> {
    parts.sort_by_key(|part| part.0);
    let mut runs: Vec<(u64, u32)> = Vec::new();
    let mut at = 0;
    for (start, part) in parts {
        if start != at {
            break;
        }
        for (count, flags) in part {
            let count = count.min(length - at);
            at += count;
            match runs.last_mut() {
                _ if count == 0 => {}
                Some(last) if last.1 == flags => last.0 += count,
                _ => runs.push((count, flags)),
            }
        }
    }
    if runs.is_empty() {
        runs.push((length, 0));
    }
    runs.truncate(if one { 1 } else { MAX_RUNS });
    // 32-bit lengths in classic replies: whole blocks below 4 GiB.
    for run in &mut runs {
        if run.0 > u64::from(u32::MAX) {
            run.0 = 0xffff_f000;
        }
    }
    if let Some(long) = runs.iter().position(|run| run.0 == 0xffff_f000) {
        runs.truncate(long + 1);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::compose;

    #[test]
    fn neighbours_join_and_gaps_end_it() {
        let parts = vec![(4, vec![(4, 3), (2, 0)]), (0, vec![(4, 3)]), (20, vec![(1, 0)])];
        assert_eq!(compose(parts.clone(), 100, false), [(8, 3), (2, 0)]);
        assert_eq!(compose(parts, 100, true), [(8, 3)]);
        assert_eq!(compose(vec![], 7, false), [(7, 0)]);
        assert_eq!(compose(vec![(0, vec![(9, 1)])], 5, false), [(5, 1)]);
        let long = vec![(0, vec![(5 << 30, 0), (1, 3)])];
        assert_eq!(compose(long, 6 << 30, false), [(0xffff_f000, 0)]);
    }
}
