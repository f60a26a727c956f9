/* Keeps one CPU busy in user mode, so that a dump has a running task that is not the crasher. */
int main(void)
{
	volatile unsigned long turns = 0;

	for (;;)
		turns++;
}
