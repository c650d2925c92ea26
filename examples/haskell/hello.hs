-- A pipe loop (protocol version 1): a line of arguments in, a line of result out, logs on stderr.
-- The flush is for stdout being a pipe: Haskell would keep the line in its buffer while the caller
-- waits for it. Binary mode and the raw name hand every byte back as it came, escapes and all.
module Main (main) where

import Control.Monad (unless)
import Data.Maybe (fromMaybe)
import System.IO

main :: IO ()
main = do
    mapM_ (`hSetBinaryMode` True) [stdin, stdout, stderr]
    hSetBuffering stderr LineBuffering
    answer "{\"openwhisk\":1}"
    loop

loop :: IO ()
loop = do
    end <- isEOF
    unless end $ do
        line <- getLine
        let name = fromMaybe "stranger" (stringMember "name" line)
        hPutStrLn stderr ("name=" ++ name)
        answer ("{\"hello\":\"Hello, " ++ name ++ "\"}")
        loop

answer :: String -> IO ()
answer line = putStrLn line >> hFlush stdout

-- | The string member of that key in a JSON object, as it stands between its quotes. It is no
-- parser: the proxy has validated the text. A key that is itself written with escapes is not
-- recognised.
stringMember :: String -> String -> Maybe String
stringMember key = search . dropWhile (`elem` " \t{")
  where
    search text = case splitValue text of
        ('"' : name, rest)
            | init name == key -> unquote value
            | otherwise -> search (dropWhile (`elem` " \t,") rest')
          where
            (value, rest') = splitValue (dropWhile (`elem` " \t:") rest)
        _ -> Nothing
    unquote ('"' : string) = Just (init string)
    unquote _ = Nothing

-- | A JSON text as its first value and what follows it.
splitValue :: String -> (String, String)
splitValue json = splitAt (outside 0 0 json) json
  where
    outside :: Int -> Int -> String -> Int
    outside _ at "" = at
    outside depth at (c : rest)
        | c == '"' = inside depth (at + 1) rest
        | c `elem` "{[" = outside (depth + 1) (at + 1) rest
        | depth > 0 = outside (if c `elem` "}]" then depth - 1 else depth) (at + 1) rest
        | c `elem` ",:}] \t\r" = at
        | otherwise = outside depth (at + 1) rest

    inside :: Int -> Int -> String -> Int
    inside depth at ('\\' : _ : rest) = inside depth (at + 2) rest
    inside depth at ('"' : rest) = outside depth (at + 1) rest
    inside depth at (_ : rest) = inside depth (at + 1) rest
    inside _ at "" = at
