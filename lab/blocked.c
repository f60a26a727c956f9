/*
 * Processes that wait for locks which others of them hold, for ever. Each holder sleeps in the middle of
 * a system call, with the lock: in a fault on a page that is registered with userfaultfd and that nobody
 * fills. What waits for what is written to the kernel's log, a line each, once /proc shows it:
 *
 *	lab blocked: NAME PID STATE WCHAN OWNER FD
 *
 * NAME is the comm, OWNER the pid of the one that is waited for or 0, FD the descriptor in PID of the file
 * whose lock it is or -1.
 * One more sleeps in functions of a module: of nbd, whose device nobody serves. And there are two that have
 * ended: a child that nobody waits for, and the first thread of a process in which another one lives.
 *
 *	blocked FOLDER	(on a file system that reads and writes past the page cache: ext4)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/nbd.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define TURNS 100
#define TURN_US 100000

static void die(const char *what)
{
	printf("LAB-FAILED blocked: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	static int log = -1;
	char line[256];
	va_list args;
	int size;

	if (log < 0)
		log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	va_start(args, format);
	size = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (log < 0 || write(log, line, size) != size)
		die("/dev/kmsg");
}

/* A page that whoever touches it waits for. */
static char *missing_page(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0 || page == MAP_FAILED || ioctl(fd, UFFDIO_API, &api))
		die("userfaultfd");
	range.range.start = (uintptr_t)page;
	range.range.len = PAGE;
	if (ioctl(fd, UFFDIO_REGISTER, &range))
		die("a page of userfaultfd");
	return page;
}

/* What each process does; none of them comes back. */
static int fd, folder;
static uint32_t *word;

static void write_missing(void)
{
	if (write(fd, missing_page(), PAGE) < 0)
		die("write from a missing page");
}

static void read_missing(void)
{
	if (read(fd, missing_page(), PAGE) < 0)
		die("read into a missing page");
}

static void read_one(void)
{
	char byte;

	if (read(fd, &byte, 1) < 0)
		die("read");
}

static void write_one(void)
{
	if (write(fd, "", 1) < 0)
		die("write");
}

/* Of an ext4 file: its lock is taken for reading. */
static void seek_data(void)
{
	if (lseek(fd, 0, SEEK_DATA) < 0)
		die("lseek");
}

static void lock_word(void)
{
	if (syscall(SYS_futex, word, FUTEX_LOCK_PI, 0, NULL, NULL, 0))
		die("futex");
	for (;;)
		pause();
}

static void wait_for_child(void)
{
	pid_t child = vfork();

	if (child < 0)
		die("vfork");
	if (child == 0) {
		prctl(PR_SET_NAME, "is-vforked");
		for (;;)
			pause();
	}
}

static void wait_in_module(void)
{
	int ends[2], device = open("/dev/nbd0", O_RDWR);

	if (device < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) || ioctl(device, NBD_SET_SOCK, ends[0]))
		die("/dev/nbd0");
	if (ioctl(device, NBD_DO_IT))
		die("NBD_DO_IT");
}

/* The state and the wait channel of a task. */
static char look(pid_t pid, char *wchan, size_t room)
{
	char path[64], text[512], *end;
	char state = 0;
	FILE *file;
	size_t size;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "r");
	size = file ? fread(text, 1, sizeof(text) - 1, file) : 0;
	text[size] = 0;
	end = strrchr(text, ')');
	if (end && end[1] == ' ')
		state = end[2];
	if (file)
		fclose(file);
	snprintf(path, sizeof(path), "/proc/%d/wchan", pid);
	file = fopen(path, "r");
	size = file ? fread(wchan, 1, room - 1, file) : 0;
	wchan[size] = 0;
	if (file)
		fclose(file);
	return state;
}

/* Returns when a task is in the state that it has to be in; `at` is part of its channel. */
static void await(const char *name, pid_t pid, char wanted, const char *at, pid_t owner, int told)
{
	char wchan[128] = "", state = 0;

	for (int turn = 0; turn < TURNS; turn++) {
		state = look(pid, wchan, sizeof(wchan));
		if (state == wanted && strstr(wchan, at)) {
			say("lab blocked: %s %d %c %s %d %d\n", name, pid, state, wchan, owner, told);
			return;
		}
		usleep(TURN_US);
	}
	errno = 0;
	printf("%s is in state %c in %s\n", name, state, wchan);
	die(name);
}

static pid_t start(const char *name, void (*run)(void), char wanted, const char *at, pid_t owner, int told)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid == 0) {
		prctl(PR_SET_NAME, name);
		run();
		errno = 0;
		die(name);
	}
	await(name, pid, wanted, at, owner, told);
	return pid;
}

static void end(void)
{
	_exit(0);
}

static void keep_child(void)
{
	start("is-ended", end, 'Z', "", 0, -1);
	for (;;)
		pause();
}

static void *live_on(void *unused)
{
	prctl(PR_SET_NAME, "lives-on");
	word[1] = (uint32_t)syscall(SYS_gettid);
	for (;;)
		pause();
	return unused;
}

static void end_leader(void)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, live_on, NULL))
		die("pthread_create");
	while (!*(volatile uint32_t *)&word[1])
		usleep(1000);
	/* exit() and a return from main() would end the other thread too */
	syscall(SYS_exit, 0);
}

static int opened(const char *name, int flags)
{
	int file = openat(folder, name, flags | O_CREAT, 0600);

	if (file < 0)
		die(name);
	return file;
}

static void fill(const char *name)
{
	static char block[16 * PAGE];
	int file = opened(name, O_WRONLY);

	if (write(file, block, sizeof(block)) != sizeof(block) || fsync(file))
		die(name);
	close(file);
}

int main(int argc, char **argv)
{
	int ends[2];
	pid_t owner;

	folder = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECTORY) : -1;
	word = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (folder < 0 || pipe(ends) || word == MAP_FAILED)
		die("preparations");

	fd = ends[1];
	owner = start("holds-mutex", write_missing, 'S', "handle_userfault", 0, -1);
	fd = ends[0];
	start("waits-mutex", read_one, 'D', "pipe_read", owner, fd);
	fd = ends[1];
	start("waits-mutex-2", write_one, 'D', "pipe_write", owner, fd);

	fill("written");
	fd = opened("written", O_RDWR);
	owner = start("holds-writing", write_missing, 'S', "handle_userfault", 0, -1);
	/* in the same file description its position is what they wait for, a mutex */
	start("waits-position", write_one, 'D', "fdget_pos", owner, fd);
	fd = opened("written", O_RDWR);
	start("waits-writing", write_one, 'D', "ext4", owner, fd);
	fd = opened("written", O_RDWR);
	start("waits-reading", seek_data, 'D', "ext4", owner, fd);

	fill("read");
	fd = opened("read", O_RDWR | O_DIRECT);
	owner = start("holds-reading", read_missing, 'D', "handle_userfault", 0, -1);
	fd = opened("read", O_RDWR);
	start("waits-reader", write_one, 'D', "ext4", owner, fd);

	owner = start("holds-futex", lock_word, 'S', "pause", 0, -1);
	start("waits-futex", lock_word, 'S', "", owner, -1);
	start("waits-child", wait_for_child, 'D', "", 0, -1);
	start("in-module", wait_in_module, 'S', "nbd", 0, -1);

	start("keeps-ended", keep_child, 'S', "pause", 0, -1);
	start("ended-leader", end_leader, 'Z', "", 0, -1);
	await("lives-on", (pid_t)word[1], 'S', "pause", 0, -1);
	return 0;
}
