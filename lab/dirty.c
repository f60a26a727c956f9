/*
 * In the place of the crasher, in rows of the scenario dirty: a child rewrites 32 MB of memory for ever,
 * page by page, and the crasher goes on with its own work.
 *
 * Each page holds its number, the round it was written in and a line of text; the rest stays as the round
 * before the last left it, so that a page of another round is no page of zeros and no page like another.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES (32UL << 20 >> 12)

static void rewrite(unsigned char *map)
{
	for (uint64_t round = 1;; round++)
		for (uint64_t number = 0; number < PAGES; number++) {
			unsigned char *page = map + number * PAGE;

			memset(page + 64 + round % 2 * 1024, (int)(round + number), 1024);
			memcpy(page, &number, sizeof(number));
			memcpy(page + 8, &round, sizeof(round));
			strcpy((char *)page + 16, "lab page that is written all the time");
		}
}

int main(int argc, char **argv)
{
	unsigned char *map = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)argc;
	if (map == MAP_FAILED)
		return 1;
	switch (fork()) {
	case -1:
		return 1;
	case 0:
		prctl(PR_SET_NAME, "dirty");
		rewrite(map);
	}
	munmap(map, PAGES * PAGE);
	execv("/lab/crasher", argv);
	return 1;
}
