/*
 * Five threads and a 4 MB anonymous mapping full of 0x5a with a marker string in its middle. The
 * marker's place is written to /run/markers/PID, from where the crasher takes it into the truth.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (4UL << 20)
#define THREADS 4

static pthread_mutex_t never_free = PTHREAD_MUTEX_INITIALIZER;

/* Half of the threads wait in a futex, half of them sleep. */
static void *wait_for_ever(void *number)
{
	if ((long)number % 2)
		pthread_mutex_lock(&never_free);
	for (;;)
		pause();
	return NULL;
}

int main(void)
{
	char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *marker, path[64], temporary[64];
	pthread_t thread;
	FILE *file;

	if (map == MAP_FAILED)
		return 1;
	memset(map, 0x5a, SIZE);
	marker = map + SIZE / 2;
	sprintf(marker, "lab marker of worker %d", getpid());
	pthread_mutex_lock(&never_free);
	for (long i = 0; i < THREADS; i++)
		if (pthread_create(&thread, NULL, wait_for_ever, (void *)i))
			return 1;
	sprintf(temporary, "/run/markers/.%d", getpid());
	sprintf(path, "/run/markers/%d", getpid());
	file = fopen(temporary, "w");
	if (!file)
		return 1;
	fprintf(file, "%d worker 0x%lx %s\n", getpid(), (unsigned long)marker, marker);
	fclose(file);
	if (rename(temporary, path))
		return 1;
	for (;;)
		pause();
}
