"""What a slide archive can honestly hold; more is refused before memory is allocated.

Each limit is several times what a laboratory's slides need, so that passing one means a
damaged header or a file made to do harm. Sizes are in bytes unless the name says pixels.
"""

from __future__ import annotations

MIB = 1 << 20

#: Tiles of one zarr slide. A conventional smear has up to about 300,000 cells.
MAX_TILES = 2_000_000

#: Files or members of one archive; each costs about 600 bytes while a zip is open.
MAX_MEMBERS = 500_000

#: A zip's list of members: 500,000 of them with names of 80 characters.
MAX_DIRECTORY_BYTES = 64 * MIB

#: Pixels of one tile, 2048 x 2048. A cell is 100 to 300 pixels wide, a cluster 1000.
MAX_TILE_PIXELS = 2048 * 2048

#: A decoded zarr chunk: 256 tiles of 400 x 400 pixels. Each reading thread holds one.
MAX_CHUNK_BYTES = 128 * MIB

#: One file or member. Compressing can add a little to a chunk that does not compress.
MAX_MEMBER_BYTES = MAX_CHUNK_BYTES + MIB

#: Uncompressed against packed size of a whole zip. Crops and chunks are compressed
#: already, so honest archives stay near 1; a zip bomb reaches 1000.
MAX_COMPRESSION_RATIO = 100

#: Below this uncompressed size the ratio is not asked for: a few blank bitmaps are no bomb.
RATIO_EXEMPT_BYTES = 16 * MIB

#: One zarr metadata document. Consolidated metadata of many arrays takes some 100 kB.
MAX_METADATA_BYTES = 4 * MIB

#: Columns of a cells table, decoded: 2,000,000 rows of 128 bytes.
MAX_TABLE_BYTES = 256 * MIB
