/*
 * User-mode Linux before 6.13 has a fixed size, 2696 bytes, for the extended
 * registers of a process. On a processor that has more of them (AMX),
 * PTRACE_SETREGSET with less than all is EFAULT, and the kernel cannot start its
 * first process. This library wraps ptrace for such a kernel and adds zeroes.
 * The kernel does not know the added registers, so nobody uses them, and the
 * header says so. The runner builds the library where it is needed, and has the
 * loader load it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static char all[1 << 16];

long ptrace(enum __ptrace_request request, ...)
{
	static long (*next)(enum __ptrace_request, ...);
	static size_t size; /* of all registers of this processor */
	struct iovec whole = {all, sizeof(all)};
	va_list args;
	va_start(args, request);
	int pid = va_arg(args, int);
	void *addr = va_arg(args, void *);
	void *data = va_arg(args, void *);
	va_end(args);

	if (!next)
		next = dlsym(RTLD_NEXT, "ptrace");
	if (request == PTRACE_SETREGSET && (long)addr == NT_X86_XSTATE) {
		struct iovec *known = data;
		if (!size && next(PTRACE_GETREGSET, pid, addr, &whole) == 0) {
			size = whole.iov_len;
			memset(all, 0, sizeof(all));
		}
		if (known->iov_len < size) {
			memcpy(all, known->iov_base, known->iov_len);
			whole.iov_len = size;
			data = &whole;
		}
	}
	return next(request, pid, addr, data);
}
