/*
 * Makes one page (or more) of every kind that dump tools tell apart, keeps them by staying alive, and
 * returns to its caller when all are there. What could not be made is said on stdout as
 * "LAB-NOTE pages: ...".
 *
 *	pages FOLDER	(on a file system with buffers; for files whose pages become dirty)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define MB (1UL << 20)
#define HUGE (2 * MB)

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif

static void note(const char *what)
{
	printf("LAB-NOTE pages: %s: %s\n", what, strerror(errno));
	fflush(stdout);
}

static char *map(size_t size, int flags)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

static char *aligned(size_t size)
{
	char *memory = map(size + HUGE, 0);

	return memory ? (char *)(((unsigned long)memory + HUGE - 1) & ~(HUGE - 1)) : NULL;
}

static void fill(char *memory, size_t size, int seed)
{
	for (size_t at = 0; at < size; at += 64)
		memory[at] = (char)(seed + at / 64 + at / PAGE);
}

static void make_huge(void)
{
	char *memory = aligned(4 * HUGE);

	if (!memory || madvise(memory, 4 * HUGE, MADV_HUGEPAGE))
		note("transparent huge pages");
	if (memory)
		fill(memory, 4 * HUGE, 1);
}

/* Half of the pool is used, the other half stays free in it. */
static void make_hugetlb(void)
{
	char *memory;
	FILE *file = fopen("/proc/sys/vm/nr_hugepages", "w");

	if (file) {
		fputs("8\n", file);
		fclose(file);
	}
	memory = map(4 * HUGE, MAP_HUGETLB);
	if (!memory)
		note("hugetlb");
	else
		fill(memory, 4 * HUGE, 2);
}

static void make_shared(void)
{
	int fd = memfd_create("pages", 0);
	char *memory;

	if (fd < 0 || ftruncate(fd, 4 * MB)) {
		note("shared memory");
		return;
	}
	memory = mmap(NULL, 4 * MB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	fill(memory, 4 * MB, 3);
}

/*
 * Out to swap and some of it back: what is read along with a page that is wanted stays in the swap
 * cache and belongs to nobody's page table.
 */
static void make_swapped(void)
{
	char *memory = map(16 * MB, 0);
	volatile char sum = 0;

	if (!memory)
		return;
	madvise(memory, 16 * MB, MADV_NOHUGEPAGE);
	fill(memory, 16 * MB, 4);
	if (madvise(memory, 16 * MB, MADV_PAGEOUT))
		note("page-out");
	sleep(2);
	for (size_t at = 0; at < 8 * MB; at += 16 * PAGE)
		sum += memory[at];
}

/* Each in a process of its own, which the kernel may kill for it. */
static void make_poison(size_t size, int flags, int huge, size_t at, const char *what)
{
	int ready[2];
	char answer = 0;
	pid_t child;

	if (pipe(ready))
		return;
	child = fork();
	if (child) {
		close(ready[1]);
		if (read(ready[0], &answer, 1) != 1)
			printf("LAB-NOTE pages: %s: the process is gone\n", what);
		close(ready[0]);
		return;
	}
	char *memory = huge ? aligned(size) : map(size, flags);

	if (memory) {
		if (huge)
			madvise(memory, size, MADV_HUGEPAGE);
		fill(memory, size, 5);
		if (madvise(memory + at, PAGE, MADV_HWPOISON))
			note(what);
	} else {
		note(what);
	}
	if (write(ready[1], "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

/* Written again and again, since anybody may sync. */
static void make_dirty(const char *folder)
{
	char path[256];
	char *memory;
	int fd;

	snprintf(path, sizeof(path), "%s/dirty", folder);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || ftruncate(fd, 2 * MB)) {
		note("a file with dirty pages");
		return;
	}
	memory = mmap(NULL, 2 * MB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		note("a file with dirty pages");
		return;
	}
	if (fork())
		return;
	for (int turn = 0;; turn++) {
		fill(memory, 2 * MB, turn);
		usleep(50000);
	}
}

int main(int argc, char **argv)
{
	int ready[2];
	char answer;

	if (argc != 2 || pipe(ready))
		return 2;
	signal(SIGCHLD, SIG_IGN);
	if (fork()) {
		close(ready[1]);
		return read(ready[0], &answer, 1) == 1 ? 0 : 1;
	}
	close(ready[0]);
	make_huge();
	make_hugetlb();
	make_shared();
	make_swapped();
	make_poison(PAGE, 0, 0, 0, "a poisoned page");
	make_poison(HUGE, MAP_HUGETLB, 0, 3 * PAGE, "a poisoned hugetlb page");
	make_poison(HUGE, 0, 1, 5 * PAGE, "a poisoned page in a transparent huge page");
	make_dirty(argv[1]);
	if (write(ready[1], "", 1) != 1)
		return 1;
	close(ready[1]);
	for (;;)
		pause();
}
