//! A folder of keys.

use std::path::Path;

use super::{Text, text};

/// The file that says which key seals.
const MARKER: &str = "primary";

/// The keys of a folder, that of the marker first, the others by their names.
pub(super) async fn texts(folder: &Path) -> Result<Vec<Text>, String> {
    let say = |error: std::io::Error| error.to_string();
    let (mut files, mut marker) = (Vec::new(), None);
    let mut entries = tokio::fs::read_dir(folder).await.map_err(say)?;
    while let Some(entry) = entries.next_entry().await.map_err(say)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Of a link, what it leads to: mounted secrets are links.
        let is_file = tokio::fs::metadata(entry.path()).await.is_ok_and(|found| found.is_file());
        if name.starts_with('.') || !is_file {
            continue;
        }
        let content = text::file(&entry.path()).await.map_err(|error| format!("{name}: {error}"))?;
        if name == MARKER {
            marker = Some(content);
        } else {
            files.push(Text { name: Some(name), content });
        }
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    let first = first(&files, marker.as_deref().map(Vec::as_slice))?;
    files[..=first].rotate_right(1);
    Ok(files)
}

/// Which file has the key that seals.
fn first(files: &[Text], marker: Option<&[u8]>) -> Result<usize, String> {
    match (files.len(), marker) {
        (0, _) => Err("there is no key in it".to_owned()),
        (1, None) => Ok(0),
        (count, None) => {
            Err(format!("there are {count} keys in it, and no file `primary` that names the one that seals"))
        }
        (_, Some(marker)) => {
            let wanted = String::from_utf8_lossy(marker);
            let names: Vec<_> = files.iter().filter_map(|file| file.name.as_deref()).collect();
            names
                .iter()
                .position(|name| *name == wanted.trim())
                .ok_or_else(|| format!("the file `primary` names none of the keys: {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "000102030405060708090a0b0c0d0e0f";
    const OTHER: &str = "000102030405060708090a0b0c0d0e1f";

    async fn of(files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        std::fs::create_dir(folder.path().join("..data")).expect("a hidden folder");
        let texts = texts(folder.path()).await?;
        Ok(texts.iter().map(|text| String::from_utf8_lossy(&text.content).into_owned()).collect())
    }

    #[tokio::test]
    async fn the_marker_says_which_key_seals() {
        let keys =
            |marker| [("2026-01", ONE), ("2026-07", OTHER), ("primary", marker), (".hidden", "no key")];
        assert_eq!(of(&keys("2026-07\n")).await.expect("keys"), [OTHER, ONE]);
        assert_eq!(of(&keys("2026-01")).await.expect("keys"), [ONE, OTHER]);
        assert_eq!(of(&keys("2026-01")[..1]).await.expect("one key needs no marker"), [ONE]);

        for (files, complaint) in [
            (&keys("2026-08")[..3], "the file `primary` names none of the keys: 2026-01, 2026-07"),
            (&keys("")[..2], "there are 2 keys in it, and no file `primary` that names the one that seals"),
            (&[], "there is no key in it"),
        ] {
            assert_eq!(of(files).await.expect_err("no keys"), complaint);
        }
    }
}
