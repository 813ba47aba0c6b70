//! Looking for the highest rate that is sustained.

/// A step that fails is tried so often.
const TRIES: usize = 2;

/// Tries rising rates until one fails every time. `run` says whether a rate was sustained. Gives
/// the highest that was.
///
/// # Errors
/// Those of `run`.
pub(super) fn climb<E>(rates: &[f64], mut run: impl FnMut(f64) -> Result<bool, E>) -> Result<Option<f64>, E> {
    let mut highest = None;
    for &rate in rates {
        let mut sustained = false;
        for _ in 0..TRIES {
            sustained = run(rate)?;
            if sustained {
                break;
            }
        }
        if !sustained {
            break;
        }
        highest = Some(rate);
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates that are run, when these fail this often in a row.
    fn climbed(fails: &[(f64, usize)]) -> (Option<f64>, Vec<f64>) {
        let mut run = Vec::new();
        let highest = climb(&[1.0, 2.0, 3.0], |rate| {
            run.push(rate);
            let tried = run.iter().filter(|r| **r == rate).count();
            Ok::<bool, ()>(fails.iter().all(|(at, times)| *at != rate || tried > *times))
        });
        (highest.unwrap(), run)
    }

    #[test]
    fn a_failed_step_is_repeated_once_and_then_it_is_the_end() {
        assert_eq!(climbed(&[]), (Some(3.0), vec![1.0, 2.0, 3.0]));
        assert_eq!(climbed(&[(2.0, 1)]), (Some(3.0), vec![1.0, 2.0, 2.0, 3.0]));
        assert_eq!(climbed(&[(2.0, 2)]), (Some(1.0), vec![1.0, 2.0, 2.0]));
        assert_eq!(climbed(&[(1.0, 2)]), (None, vec![1.0, 1.0]));
    }
}
