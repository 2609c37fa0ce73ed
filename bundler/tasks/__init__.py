"""Questions with known answers: their files, which of them are asked, and how a proof is told."""
