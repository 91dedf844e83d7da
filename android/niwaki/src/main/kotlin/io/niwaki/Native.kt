package io.niwaki

import io.niwaki.ffi.InternalException
import io.niwaki.ffi.TokenStream
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancelChildren
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import io.niwaki.ffi.NiwakiException as NativeException

/** Calls native code, so that only a [NiwakiException] comes out. */
internal inline fun <R> native(call: () -> R): R =
    try {
        call()
    } catch (e: NativeException) {
        throw e.toNiwakiException()
    } catch (e: InternalException) {
        throw NiwakiException.Internal("the engine failed in a way it should not; please report it", e)
    }

/** Calls native code that blocks, on a thread that may be blocked. */
internal suspend inline fun <R> offMain(crossinline call: () -> R): R = withContext(Dispatchers.IO) { native(call) }

/** Whether an owner of native memory is still open, and what generates with it. */
internal class Lifetime(private val owner: String) {
    private val lock = Any()
    private var ended = false
    private val streams = mutableSetOf<TokenStream>()

    /**
     * Calls native code of the open owner.
     *
     * @throws NiwakiException.Closed
     */
    inline fun <R> use(call: () -> R): R {
        requireOpen()
        return try {
            call()
        } catch (e: IllegalStateException) {
            // It was closed in between.
            requireOpen()
            throw e
        }
    }

    /** Cancels what generates. False when that was done before. */
    fun end(): Boolean {
        synchronized(lock) {
            if (ended) return false
            ended = true
            streams.forEach { it.cancel() }
        }
        return true
    }

    /**
     * The tokens of the stream that [start] gives. The native side computes at most one token ahead; when the
     * collection ends, however it does, the native work has ended too.
     */
    fun tokens(start: () -> TokenStream): Flow<Token> = channelFlow {
        val stream = native { use(start) }
        stream.use {
            try {
                add(stream)
                // Tells the native side at once, while this coroutine may be blocked in it.
                launch(Dispatchers.Unconfined, CoroutineStart.UNDISPATCHED) {
                    try {
                        awaitCancellation()
                    } finally {
                        cancel(stream)
                    }
                }
                while (true) {
                    val token = native { stream.next() } ?: break
                    send(Token(token.text, token.id?.toInt()))
                }
                ensureActive()
                requireOpen()
                stream.finish()?.let { send(Token("", finish = Finish(it))) }
            } finally {
                stream.cancel()
                // Waits for the end of what it still does.
                runCatching { stream.next() }
                remove(stream)
            }
        }
        coroutineContext.cancelChildren()
    }.flowOn(Dispatchers.IO).buffer(Channel.RENDEZVOUS)

    private fun add(stream: TokenStream) = synchronized(lock) {
        requireOpen()
        streams.add(stream)
    }

    /** A stream that was removed may be closed already. */
    private fun cancel(stream: TokenStream) = synchronized(lock) {
        if (stream in streams) stream.cancel()
    }

    private fun remove(stream: TokenStream) = synchronized(lock) { streams.remove(stream) }

    fun requireOpen() = synchronized(lock) {
        if (ended) throw NiwakiException.Closed("$owner was closed")
    }
}
