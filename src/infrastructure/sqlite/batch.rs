//! Statements over many rows: a few fixed sizes, so that each is prepared once.

use std::sync::Arc;

use sqlx::AssertSqlSafe;

/// A statement with a list of rows in it, in the sizes of the powers of two.
pub(super) struct ManyRows {
    /// Largest first; the size and the statement.
    sizes: Vec<(usize, Arc<str>)>,
}

impl ManyRows {
    /// `before (?, …), (?, …) after`, with up to `max` rows of `columns` parameters each, and no
    /// parameters elsewhere.
    pub(super) fn new(max: usize, before: &str, columns: usize, after: &str) -> Self {
        let row = format!("({})", vec!["?"; columns].join(", "));
        let sizes = std::iter::successors(Some(max), |size| Some(size / 2))
            .take_while(|size| *size > 0)
            .map(|size| {
                let rows = vec![row.as_str(); size].join(", ");
                (size, Arc::from(format!("{before} {rows} {after}")))
            })
            .collect();
        Self { sizes }
    }

    /// Cuts `rows` into pieces, each with the statement of its size.
    pub(super) fn pieces<'a, T>(
        &'a self,
        mut rows: &'a [T],
    ) -> impl Iterator<Item = (AssertSqlSafe<Arc<str>>, &'a [T])> {
        std::iter::from_fn(move || {
            let (size, sql) = self.sizes.iter().find(|(size, _)| *size <= rows.len())?;
            let (piece, rest) = rows.split_at(*size);
            rows = rest;
            // Made of constants alone, above.
            Some((AssertSqlSafe(Arc::clone(sql)), piece))
        })
    }
}

/// A JSON array of ids in hex, for `unhex(value)` over `json_each`.
pub(super) fn hex_array(ids: impl Iterator<Item = uuid::Uuid>) -> String {
    let mut buffer = [0; uuid::fmt::Simple::LENGTH];
    let mut array = String::from("[");
    for id in ids {
        if array.len() > 1 {
            array.push(',');
        }
        array.push('"');
        array.push_str(id.simple().encode_lower(&mut buffer));
        array.push('"');
    }
    array.push(']');
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_one_piece_of_a_known_size() {
        let statement = ManyRows::new(4, "INSERT INTO t VALUES", 2, "RETURNING id");
        let rows: Vec<u32> = (0..11).collect();
        let pieces: Vec<_> = statement.pieces(&rows).collect();
        let sizes: Vec<usize> = pieces.iter().map(|(_, piece)| piece.len()).collect();
        assert_eq!(sizes, [4, 4, 2, 1]);
        assert_eq!(
            pieces.concat_rows(),
            rows,
            "in order and none twice or left out"
        );
        let (sql, _) = &pieces[2];
        assert_eq!(&*sql.0, "INSERT INTO t VALUES (?, ?), (?, ?) RETURNING id");
    }

    trait ConcatRows {
        fn concat_rows(&self) -> Vec<u32>;
    }

    impl ConcatRows for Vec<(AssertSqlSafe<Arc<str>>, &[u32])> {
        fn concat_rows(&self) -> Vec<u32> {
            self.iter().flat_map(|(_, piece)| piece.to_vec()).collect()
        }
    }

    #[test]
    fn ids_become_a_json_array_of_hex() {
        assert_eq!(hex_array(std::iter::empty()), "[]");
        let ids = [uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(0xab << 120)];
        assert_eq!(
            hex_array(ids.into_iter()),
            r#"["00000000000000000000000000000001","ab000000000000000000000000000000"]"#
        );
    }
}
