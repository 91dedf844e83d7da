package io.niwaki

import io.niwaki.ffi.TokenStream
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancelChildren
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.channels.ProducerScope
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
    } catch (e: NiwakiException) {
        throw e
    } catch (e: NativeException) {
        throw e.toNiwakiException()
    } catch (e: LinkageError) {
        throw NiwakiException.LibraryNotLoaded("the native library cannot be loaded: ${e.message}", e)
    } catch (e: Exception) {
        throw NiwakiException.Internal("the engine failed in a way it should not; please report it", e)
    }

/** Calls native code that blocks, on a thread that may be blocked. */
internal suspend inline fun <R> offMain(crossinline call: () -> R): R = withContext(Dispatchers.IO) { native(call) }

/** What a native thread brings forth, item by item. */
internal interface NativeStream<T : Any> : AutoCloseable {
    /** Waits for the next item; null when it has ended and nothing is done for it any more. */
    fun next(): T?

    /** Stops the work without waiting for it. */
    fun cancel()

    /** What is to be said at the end. */
    fun last(): T?
}

private class NativeTokens(private val native: TokenStream) : NativeStream<Token> {
    override fun next(): Token? = native.next()?.let { Token(it.text, it.id?.toInt(), logProbs = it.logProbs?.let(::LogProbs)) }

    override fun cancel() = native.cancel()

    override fun last(): Token? = native.finish()?.let { Token("", finish = Finish(it)) }

    override fun close() = native.close()
}

/** Whether an owner of native memory is still open, and what generates with it. */
internal class Lifetime(private val owner: String) {
    private val lock = Any()
    private var ended = false
    private val streams = mutableSetOf<NativeStream<*>>()

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

    /** As [items], of a native stream of tokens. */
    fun tokens(start: () -> TokenStream): Flow<Token> = items { NativeTokens(start()) }

    /**
     * The items of the stream that [start] gives, its [NativeStream.last] included. The native side works at most
     * one item ahead; when the collection ends, however it does, the native work has ended too.
     */
    fun <T : Any> items(start: () -> NativeStream<T>): Flow<T> = channelFlow {
        try {
            sendItems(start)
        } catch (e: NiwakiException) {
            // Thrown, it would cancel the collector, which may not have got the item before it yet.
            close(e)
        }
        coroutineContext.cancelChildren()
    }.flowOn(Dispatchers.IO).buffer(Channel.RENDEZVOUS)

    private suspend fun <T : Any> ProducerScope<T>.sendItems(start: () -> NativeStream<T>) {
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
                    val item = native { stream.next() } ?: break
                    send(item)
                }
                ensureActive()
                requireOpen()
                stream.last()?.let { send(it) }
            } finally {
                stream.cancel()
                // Waits for the end of what it still does.
                runCatching { stream.next() }
                remove(stream)
            }
        }
    }

    private fun add(stream: NativeStream<*>) = synchronized(lock) {
        requireOpen()
        streams.add(stream)
    }

    /** A stream that was removed may be closed already. */
    private fun cancel(stream: NativeStream<*>) = synchronized(lock) {
        if (stream in streams) stream.cancel()
    }

    private fun remove(stream: NativeStream<*>) = synchronized(lock) { streams.remove(stream) }

    fun requireOpen() = synchronized(lock) {
        if (ended) throw NiwakiException.Closed("$owner was closed")
    }
}
